"""Kueue: a Job in a queue is created suspended, and from then on Kueue alone starts and stops it. Here it is told so.

Preemption suspends the same Job: its pods checkpoint and end, and the Job goes on when there is quota again. So it is
no failure, no new attempt, and nothing is charged (ADR 16).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_operator.api.conditions import ConditionType as T
from finetune_operator.api.conditions import Reason
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.parse import format_time, parse_time
from finetune_operator.api.status import QueueStatus, ResolvedStatus
from finetune_operator.api.views import ChildJob, PodView, View, WorkloadView
from finetune_operator.policy.draft import Draft
from finetune_operator.policy.step import Step

FEWER_NODES_SECONDS = 300
"""Time without quota after which a job asks for fewer nodes."""
_NO_QUOTA = {
    Reason.QUEUED,
    Reason.PREEMPTED,
    "Pending",  # all that versions before 0.19 say
    "WaitingForQuota",
    "ExceedsMaxQuota",
    "TopologyPlacementFailed",
}
"""Reasons for a wait that fewer nodes may end."""
_NOT_EVALUATED = "it is in the queue, and Kueue has not evaluated it yet: others come first"


def held(view: View, draft: Draft, child: ChildJob, spec: FineTuneJobSpec) -> bool:
    """Say where an attempt's Job stands in its queue; return whether that holds it back."""
    workload = next((item for item in view.workloads if item.child_uid == child.uid), None)
    queue = spec.scheduling.queue if child.stage == "train" else None
    if workload is None and queue is None and not child.suspended:
        return False
    reserved, reason, message = _standing(workload, queue, child, kueue=view.kueue)
    if child.stage == "train" and (workload or queue):
        _note_wait(draft, queue, workload, waits=not reserved)
        draft.condition(T.QUOTA_RESERVED, reserved, reason, message)
    if not child.suspended:
        return False
    if reserved and workload:
        message = workload.checks or "quota is reserved, the Job is about to start"
    if child.stage == "train":
        draft.condition(T.PODS_READY, False, Reason.QUEUED)
    draft.condition(draft.current, False, Reason.QUEUED, message)
    return True


def _standing(
    workload: WorkloadView | None, queue: str | None, child: ChildJob, *, kueue: bool
) -> tuple[bool, str, str]:
    """Return whether there is quota, with Kueue's reason and message."""
    if workload is None:
        return False, *_without_workload(queue, child, kueue=kueue)
    if workload.evicted:  # stays true until there is quota again
        waits = "" if workload.reserved or workload.message == workload.evicted_message else workload.message
        return False, workload.evicted, "; ".join(filter(None, (workload.evicted_message, waits)))
    return workload.reserved, workload.reason or Reason.QUEUED, workload.message or _NOT_EVALUATED


def _without_workload(queue: str | None, child: ChildJob, *, kueue: bool) -> tuple[Reason, str]:
    if queue is None:
        return Reason.QUEUED, f"somebody has suspended the Job {child.name}"
    if not kueue:
        return Reason.KUEUE_NOT_SERVED, f"scheduling.queue is {queue}, and this cluster serves no Kueue: the job waits"
    return Reason.WAITING_FOR_KUEUE, (
        f"Kueue has not looked at the Job {child.name} yet; if that lasts: does Kueue run, with the integration "
        "batch/job, and manage this namespace?"
    )


def leave(draft: Draft, reason: Reason, message: str) -> None:
    """Say that no Job of this run is in the queue any more."""
    queue = draft.status.queue
    if queue is None:
        return
    _note_wait(draft, queue.name, None, waits=False)
    draft.condition(T.QUOTA_RESERVED, False, reason, message)


def _note_wait(draft: Draft, name: str | None, workload: WorkloadView | None, *, waits: bool) -> None:
    old = draft.status.queue or QueueStatus()
    since = parse_time(old.waiting_since)
    passed = max(0, int((draft.now - since).total_seconds())) if since and not waits else 0
    draft.set(
        queue=QueueStatus(
            name=name,
            workload=workload.name if workload else None,
            waiting_since=(old.waiting_since or format_time(draft.now)) if waits else None,
            waited_seconds=old.waited_seconds + passed,
        )
    )


def requeued(draft: Draft, child: ChildJob, spec: FineTuneJobSpec, pods: tuple[PodView, ...]) -> Step | None:
    """Return how a Job that waits, with no pod of it alive, leaves the queue for another; None where it stays.

    A Job is never changed, so that another priority or fewer nodes mean another Job: the next attempt's.
    """
    if child.stage != "train" or child.deleting or any(not pod.is_terminal for pod in pods):
        return None
    if spec.scheduling.queue and child.queue_priority != spec.scheduling.queue_priority:
        return _leave_for_another(draft, child, f"queuePriority is {spec.scheduling.queue_priority or 'none'} now")
    nodes = fewer_nodes(spec, draft.status.resolved)
    due = _due(draft)
    if nodes is None or due is None or draft.now < due or draft.status.resolved is None:
        return None
    fewer = {"nodes": nodes, "gpus": nodes * spec.resources.gpus}
    draft.set(resolved=draft.status.resolved.model_copy(update=fewer))
    return _leave_for_another(draft, child, f"no quota for {spec.resources.nodes} nodes: {nodes} are asked for")


def look_again(draft: Draft, spec: FineTuneJobSpec) -> float | None:
    """Return the seconds after which to look at a Job that waits, though nothing may have happened."""
    due = _due(draft) if fewer_nodes(spec, draft.status.resolved) else None
    return (due - draft.now).total_seconds() if due else None


def fewer_nodes(spec: FineTuneJobSpec, resolved: ResolvedStatus | None) -> int | None:
    """Return the next smaller number of nodes that share every batch evenly in whole micro-batches, if it may be."""
    asked, micro_batch = spec.resources, 1
    if resolved and resolved.training:
        micro_batch = resolved.micro_batch_size or resolved.training.micro_batch_size
    share = max(1, asked.gpus) * micro_batch
    batch = spec.hyperparameters.batch_size
    smaller = range(asked.nodes - 1, (asked.min_nodes or asked.nodes) - 1, -1)
    return next((nodes for nodes in smaller if batch % (nodes * share) == 0), None)


def _due(draft: Draft) -> datetime | None:
    """Return when fewer nodes are asked for; None while it is not for want of quota that the job waits."""
    since = parse_time(draft.status.queue.waiting_since) if draft.status.queue else None
    if since is None or draft.reason(T.QUOTA_RESERVED) not in _NO_QUOTA:
        return None
    return since + timedelta(seconds=FEWER_NODES_SECONDS)


def _leave_for_another(draft: Draft, child: ChildJob, why: str) -> Step:
    leave(draft, Reason.REQUEUED, why)
    draft.condition(draft.current, False, Reason.QUEUED, why)
    draft.set(job=None, attempt=(draft.status.attempt or 1) + 1)
    return Step(delete=(child.name,), requeue_after=0.0)
