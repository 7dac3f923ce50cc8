"""Names of children, made from job, uid, run and attempt: the same for the same attempt, never reused by another.

The 5 hex digits of the uid keep a recreated FineTuneJob from meeting its predecessor's children (job-traps 3).
"""

from __future__ import annotations

from finetune_operator.api.views import Stage


def child_name(name: str, uid: str, *, run: int, attempt: int, stage: Stage) -> str:
    """Return the name of the batch Job of one attempt: `<name>-<5 hex>-r<run>-a<attempt>`, prepare's with -prep."""
    base = f"{name}-{uid.replace('-', '')[:5]}-r{run}-a{attempt}"
    return f"{base}-prep" if stage == "prepare" else base
