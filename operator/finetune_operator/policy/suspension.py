"""Suspension: the attempt checkpoints and ends, its GPUs are free, and a later attempt goes on. No failure, no charge.

The Job is deleted, as Kubernetes does with a suspended Job's pods: SIGTERM, then the grace period. Only when no pod
lives is the job Suspended. Deadlines do not count the time (job-traps 11).
"""

from __future__ import annotations

from datetime import datetime

from finetune_operator.api.conditions import ConditionType as T
from finetune_operator.api.conditions import Reason
from finetune_operator.api.status import JobReference
from finetune_operator.api.views import ChildJob, PodView
from finetune_operator.policy import queueing, waiting
from finetune_operator.policy.draft import Draft
from finetune_operator.policy.ending import current_stage
from finetune_operator.policy.step import Step

_ENDING = "the attempt writes a checkpoint and ends"
_SUSPENDED = "no pod is there; lifecycle.suspend: false goes on"


def suspend(draft: Draft, child: ChildJob | None, pods: tuple[PodView, ...], *, now: datetime) -> Step | None:
    """Return what a wanted suspension asks for; None where the attempt has ended by itself and is looked at first."""
    if child is not None and child.state != "active":
        return None
    if child is not None and not child.deleting:
        draft.set(job=JobReference(name=child.name, uid=child.uid))
        draft.condition(T.SUSPENDED, False, Reason.SUSPENDING, _ENDING)
        return Step(delete=(child.name,))
    if (wait := _until_gone(child, pods, now)) is not None:
        draft.condition(T.SUSPENDED, False, Reason.SUSPENDING, _ENDING)
        return Step(requeue_after=wait)
    _leave_attempt(draft)
    draft.condition(T.SUSPENDED, True, Reason.SUSPENDED, _SUSPENDED)
    return Step()


def resume(draft: Draft, child: ChildJob | None, pods: tuple[PodView, ...], *, now: datetime) -> Step | None:
    """Return what has to be waited for before a job goes on that is not to be suspended any more; None if nothing."""
    if draft.is_true(T.SUSPENDED):
        _count(draft, now)
    elif draft.reason(T.SUSPENDED) != Reason.SUSPENDING:
        return None
    elif child is None or child.deleting:  # asked to end before the user thought better of it
        if (wait := _until_gone(child, pods, now)) is not None:
            return Step(requeue_after=wait)
        _leave_attempt(draft)
    draft.condition(T.SUSPENDED, False, Reason.RESUMED, "the job goes on")
    return None


def _count(draft: Draft, now: datetime) -> None:
    since = draft.since(T.SUSPENDED)
    if since and draft.status.resolved is not None:  # nothing counts before the run has begun
        passed = max(0, int((now - since).total_seconds()))
        draft.set(suspended_seconds=(draft.status.suspended_seconds or 0) + passed)


def _until_gone(child: ChildJob | None, pods: tuple[PodView, ...], now: datetime) -> float | None:
    """Return the seconds until the attempt's Job and pods are gone or lost; None if they are."""
    wait = waiting.until_gone(pods, now)
    return waiting.RECHECK_SECONDS if wait is None and child else wait


def _leave_attempt(draft: Draft) -> None:
    """A Job's name is used once: what goes on is the next attempt, though nothing has failed."""
    if draft.status.job is not None:
        draft.set(job=None, attempt=(draft.status.attempt or 1) + 1)
    if draft.status.resolved is None:  # nothing has begun
        return
    if current_stage(draft) == "train":
        draft.condition(T.PODS_READY, False, Reason.SUSPENDED, "the pods have ended")
        queueing.leave(draft, Reason.SUSPENDED, _SUSPENDED)
    draft.condition(draft.current, False, Reason.SUSPENDED, _SUSPENDED)
