"""Limits of time: until the trainer works, until the job ends, and between two steps.

All are computed from times in the status, so that a restart of the operator changes nothing. Suspension does not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from finetune_operator.api.conditions import ConditionType as T
from finetune_operator.api.conditions import Reason
from finetune_operator.api.job import Lifecycle
from finetune_operator.api.parse import later, parse_time
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.policy.draft import Draft
from finetune_operator.policy.progress import duration


def exceeded(status: FineTuneJobStatus, lifecycle: Lifecycle, now: datetime) -> tuple[Reason, str] | None:
    """Return reason and message if the job has to end."""
    return next(((reason, message) for due, reason, message in _deadlines(status, lifecycle) if due <= now), None)


def next_due(status: FineTuneJobStatus, lifecycle: Lifecycle, now: datetime) -> float | None:
    """Return the seconds until the next deadline of the job, if it has one."""
    waits = [(due - now).total_seconds() for due, _, _ in _deadlines(status, lifecycle)]
    return min(waits) if waits else None


def stalled(draft: Draft, lifecycle: Lifecycle, now: datetime) -> str | None:
    """Return what is wrong if the attempt that trains has made no step for too long."""
    due = stalls_at(draft, lifecycle)
    if due is None or now < due:
        return None
    step = draft.status.progress.step if draft.status.progress else None
    done = f"after step {step}" if step is not None else "yet"
    return (
        f"no step {done} for {duration(lifecycle.stall_timeout_seconds)} (lifecycle.stallTimeoutSeconds): "
        "raise it if evaluation or export take as long"
    )


def stalls_at(draft: Draft, lifecycle: Lifecycle) -> datetime | None:
    """Return when the attempt counts as stalled unless it makes a step before."""
    if lifecycle.stall_timeout_seconds is None or not draft.is_true(T.RUNNING):
        return None
    progress = draft.status.progress
    times = (draft.since(T.RUNNING), parse_time(progress.last_step_time) if progress else None)
    last = max((time for time in times if time), default=None)
    return later(last, lifecycle.stall_timeout_seconds) if last else None


def _deadlines(status: FineTuneJobStatus, lifecycle: Lifecycle) -> Iterator[tuple[datetime, Reason, str]]:
    begun = _counted_from(status)
    if begun is None:
        return
    if lifecycle.active_deadline_seconds is not None:
        limit = lifecycle.active_deadline_seconds
        yield (
            later(begun, limit),
            Reason.DEADLINE_EXCEEDED,
            (
                f"the job was active for {duration(limit)} (lifecycle.activeDeadlineSeconds): "
                "a new job may go on from its last checkpoint (checkpoint.resumeFrom)"
            ),
        )
    if lifecycle.start_deadline_seconds is not None and status.training_start_time is None:
        limit = lifecycle.start_deadline_seconds
        yield (
            later(begun, limit),
            Reason.START_DEADLINE_EXCEEDED,
            (f"the trainer did not work within {duration(limit)} (lifecycle.startDeadlineSeconds)"),
        )


def _counted_from(status: FineTuneJobStatus) -> datetime | None:
    """Return the start, moved on by the time in suspension."""
    start = parse_time(status.start_time)
    return later(start, status.suspended_seconds or 0) if start else None
