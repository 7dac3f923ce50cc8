"""What the parts of a decision hand on beside the status."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.policy.plan import ChildRequest


@dataclass(frozen=True, slots=True)
class Step:
    """Effects, and when to look again."""

    create: ChildRequest | None = None
    delete: tuple[str, ...] = ()
    requeue_after: float | None = None
