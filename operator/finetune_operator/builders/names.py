"""Names of children, made from job, uid, run and attempt: the same for the same attempt, never reused by another.

The 5 hex digits of the uid keep a recreated FineTuneJob from meeting its predecessor's children (job-traps 3).
"""

from __future__ import annotations

from finetune_operator.api.views import Stage


def child_name(name: str, uid: str, *, run: int, attempt: int, stage: Stage) -> str:
    """Return the name of the batch Job of one attempt: `<name>-<5 hex>-r<run>-a<attempt>`, prepare's with -prep."""
    base = f"{service_name(name, uid)}-r{run}-a{attempt}"
    return f"{base}-prep" if stage == "prepare" else base


def service_name(name: str, uid: str) -> str:
    """Return the name of the Service under which the pods of a job with several find each other: `<name>-<5 hex>`."""
    return f"{name}-{uid.replace('-', '')[:5]}"
