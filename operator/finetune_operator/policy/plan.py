"""What a decision asks for. The reconciler carries it out: status first, then deletions, creations and events."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.api.views import Stage
from finetune_operator.policy.effective import Effective


@dataclass(frozen=True, slots=True)
class ChildRequest:
    """A batch Job to create."""

    stage: Stage
    run: int
    attempt: int
    collect: bool = False
    """Only reread the manifest, without a GPU: the result of a complete Job was lost (job-traps 5)."""


@dataclass(frozen=True, slots=True)
class EventRequest:
    """A Kubernetes Event about the job."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome of a decision."""

    status: FineTuneJobStatus | None = None
    """The status to write, if it differs."""
    effective: Effective | None = None
    """What the children are built from."""
    create: ChildRequest | None = None
    delete: tuple[str, ...] = ()
    """Names of batch Jobs to delete."""
    delete_self: bool = False
    """Delete the FineTuneJob: its time after the end has passed."""
    events: tuple[EventRequest, ...] = ()
    """To emit once the status is written."""
    requeue_after: float | None = None
    """Seconds after which to decide again, though nothing may have happened."""
