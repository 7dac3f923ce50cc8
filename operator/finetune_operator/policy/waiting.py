"""Why a pod does not run yet, in the words of whoever holds it up."""

from __future__ import annotations

from datetime import datetime

from finetune_operator.api.conditions import Reason
from finetune_operator.api.parse import later
from finetune_operator.api.views import ChildJob, ContainerView, PodView

_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_CONFIG = {"CreateContainerConfigError", "CreateContainerError"}
_CREATING = {"ContainerCreating", "PodInitializing"}
RECHECK_SECONDS = 30.0
"""Until the next look at a pod of which nothing says when it ends."""
STUCK_SECONDS = 60
"""Time beyond its grace period after which a pod that should have ended is taken for lost (job-traps 1)."""

PODLESS_SECONDS = 5.0
"""After its creation a Job has pods within this, unless something is in the way."""

CREATING_SECONDS = 10.0
"""After its Job's creation a pod has its volumes within this; pulling an image may take longer."""


def is_podless(child: ChildJob, pods: tuple[PodView, ...], now: datetime) -> bool:
    """Whether a Job that may start should have pods by now, and has none."""
    if child.state != "active" or child.suspended or child.deleting or child.created_at is None:
        return False
    return now >= later(child.created_at, PODLESS_SECONDS) and not any(pod.child == child.name for pod in pods)


def is_creating(pod: PodView) -> bool:
    """Whether a node has taken a pod and not one of its containers has started, for no reason that the pod tells."""
    if pod.phase != "Pending" or pod.unschedulable or pod.deleted_at or not pod.containers:
        return False
    return all(one.state == "waiting" and one.reason in _CREATING for one in pod.containers)


def may_lack_volumes(child: ChildJob, pods: tuple[PodView, ...], now: datetime) -> PodView | None:
    """Return a pod that should have started by now: that a volume cannot be mounted stands in an Event alone."""
    if child.state != "active" or child.created_at is None or now < later(child.created_at, CREATING_SECONDS):
        return None
    return next((pod for pod in pods if pod.child == child.name and is_creating(pod)), None)


def why_waiting(pods: tuple[PodView, ...]) -> tuple[Reason, str]:
    """Return reason and message for pods that do not all run."""
    for pod in pods:
        if pod.unschedulable:
            return Reason.UNSCHEDULABLE, pod.unschedulable
        for container in pod.containers:
            told = _held_up(pod, container)
            if told:
                return told
    # Before a node has taken the pod there is nothing to say yet: a status write for each of its first moments
    # would cost a burst of jobs a third of its speed.
    taken = any(pod.containers for pod in pods)
    return (Reason.STARTING, "the containers start") if taken else (Reason.POD_PENDING, "the pod is being created")


def _held_up(pod: PodView, container: ContainerView) -> tuple[Reason, str] | None:
    if container.state != "waiting":
        return None
    where = f"pod {pod.name}, container {container.name}: "
    if container.reason in _IMAGE:
        return Reason.IMAGE_PULL, f"{where}{container.message or container.reason}"
    if container.reason in _CONFIG:
        return Reason.CONTAINER_CONFIG, f"{where}{container.message or container.reason}"
    return None


def until_gone(pods: tuple[PodView, ...], now: datetime) -> float | None:
    """Return the seconds after which to look again for pods that still live; None if all are gone or lost."""
    alive = [pod for pod in pods if not pod.is_terminal and not is_lost(pod, now)]
    if not alive:
        return None
    ends = [lost for pod in alive if (lost := lost_after(pod))]
    return max(1.0, (min(ends) - now).total_seconds()) if ends else RECHECK_SECONDS


def is_lost(pod: PodView, now: datetime) -> bool:
    """Whether a pod should have ended long ago: its node is gone, and it would hang its Job for ever.

    A Job waits for its pods to be terminal, which nobody but the lost node could tell it. The next attempt
    writes under its own prefix, so that a zombie does no harm.
    """
    deadline = lost_after(pod)
    return deadline is not None and now >= deadline


def lost_after(pod: PodView) -> datetime | None:
    """Return when a pod counts as lost, or None if nothing asked it to end."""
    if pod.is_terminal:
        return None
    if pod.deleted_at:  # deletionTimestamp has the grace period in it
        return later(pod.deleted_at, STUCK_SECONDS)
    if pod.disrupted_at:
        return later(pod.disrupted_at, pod.grace_seconds + STUCK_SECONDS)
    return None
