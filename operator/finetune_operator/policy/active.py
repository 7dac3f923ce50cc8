"""An attempt whose Job is active: it waits in a queue, starts, works, or hangs.

What its pods show becomes the conditions PodsReady and Running, what it reports becomes progress.
"""

from __future__ import annotations

from finetune_contract.exit_codes import FailureClass
from finetune_operator.api.conditions import ConditionType as T
from finetune_operator.api.conditions import Reason
from finetune_operator.api.parse import format_time
from finetune_operator.api.views import ChildJob, PodView, View
from finetune_operator.policy import deadlines, progress, queueing, waiting
from finetune_operator.policy.draft import Draft
from finetune_operator.policy.effective import Effective
from finetune_operator.policy.ending import give_up_attempt
from finetune_operator.policy.failures import Failed
from finetune_operator.policy.step import Step


def go_on(view: View, draft: Draft, effective: Effective, *, child: ChildJob, least: float) -> Step:
    """Say how far the attempt is, and end it if it is lost or stalled. Least: seconds between writes of progress."""
    pods = tuple(pod for pod in view.pods if pod.child == child.name)
    if lost := next((pod.name for pod in pods if waiting.is_lost(pod, draft.now)), None):
        failed = Failed(FailureClass.DISRUPTED, Reason.EVICTED, "the node was lost with the pod on it", pod=lost)
        return give_up_attempt(draft, effective, failed, now=draft.now)
    is_held = queueing.held(view, draft, child, effective.spec)
    if is_held and (step := queueing.requeued(draft, child, effective.spec, pods)):
        return step
    if not is_held:
        wanted = effective.spec.resources.nodes if child.stage == "train" else 1
        _say_how_far(draft, pods, wanted=wanted, held_up=_held_up(view))
    # Pods that end after a preemption still tell how far they came.
    reported = _progress(view, draft, effective, pods=pods, least=least)
    if still := deadlines.stalled(draft, effective.spec.lifecycle, draft.now):
        first = pods[0].name if pods else None
        failed = Failed(FailureClass.INFRASTRUCTURE, Reason.STALL_TIMEOUT, still, pod=first)
        return give_up_attempt(draft, effective, failed, now=draft.now)
    queued = queueing.look_again(draft, effective.spec) if is_held else None
    podless = None if pods or is_held else waiting.PODLESS_SECONDS
    creating = waiting.CREATING_SECONDS if any(map(waiting.is_creating, pods)) else None
    return Step(requeue_after=_next_look(draft, effective, pods, reported, queued, podless, creating))


def _held_up(view: View) -> tuple[Reason, str] | None:
    """Return what pods themselves do not tell: that they are not taken, or get no volumes."""
    if view.refused_pods:
        return Reason.PODS_REFUSED, view.refused_pods
    return (Reason.MOUNT_FAILED, view.mount_failure) if view.mount_failure else None


def _next_look(draft: Draft, effective: Effective, pods: tuple[PodView, ...], *seconds: float | None) -> float | None:
    """Return the seconds until the first of what is awaited: given ones, a pod that is lost then, a stall."""
    times = [waiting.lost_after(pod) for pod in pods]
    times.append(deadlines.stalls_at(draft, effective.spec.lifecycle))
    waits = [wait for wait in seconds if wait is not None]
    waits += [(time - draft.now).total_seconds() for time in times if time]
    return max(0.1, min(waits)) if waits else None


def _say_how_far(draft: Draft, pods: tuple[PodView, ...], *, wanted: int, held_up: tuple[Reason, str] | None) -> None:
    training = draft.is_true(T.PREPARED)
    main = "train" if training else "prepare"
    # A container that has ended is not starting again: its Job says in a moment how it went.
    runs = any(item.name == main and item.state != "waiting" for pod in pods for item in pod.containers)
    reason, message = held_up or waiting.why_waiting(pods)
    if not training:
        told = (Reason.PREPARING, "the data is being checked") if runs else (reason, message)
        draft.condition(T.PREPARED, False, *told)
        return
    # A pod whose share of the work is done before the first one's is not missing.
    there = sum(pod.ready or pod.phase == "Succeeded" for pod in pods)
    counted = f"{there} of {wanted} pods" if wanted > 1 else ""
    draft.condition(T.PODS_READY, there >= wanted, reason if not runs else Reason.TRAINING, counted)
    draft.condition(T.RUNNING, runs, *((Reason.TRAINING, "the trainer works") if runs else (reason, message)))
    if runs and draft.status.training_start_time is None:
        draft.set(training_start_time=format_time(draft.now))


def _progress(
    view: View, draft: Draft, effective: Effective, *, pods: tuple[PodView, ...], least: float
) -> float | None:
    """Take over the newest report, or return how long it has to wait."""
    report = view.report
    if report is None or report.pod_uid not in {pod.uid for pod in pods}:
        return None
    wait = progress.wait_seconds(draft.status.progress, now=draft.now, least=least)
    if wait > 0:
        return wait
    progress.take_over(draft, report, effective.spec.output.uri)
    return None
