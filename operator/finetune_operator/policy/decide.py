"""The decision: from everything that is seen of a job to what is to be done about it.

A pure function, called again after every change. It keeps no memory beside the status, so that any step may be
lost or repeated: a status write that moves run, attempt or restarts precedes the Job that it speaks of, a missing
Job for the recorded attempt is created under the same name, and a Job that was seen and is gone is a disruption.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from finetune_contract.exit_codes import ExitCode, FailureClass
from finetune_operator.api.conditions import ConditionType as T
from finetune_operator.api.conditions import Reason
from finetune_operator.api.parse import format_time
from finetune_operator.api.status import (
    FineTuneJobStatus,
    JobReference,
    LastFailure,
    ProfileSnapshot,
    ResolvedStatus,
    Restarts,
)
from finetune_operator.api.views import ChildJob, JobView, PodView, Stage, View
from finetune_operator.policy import progress, results, retry, waiting
from finetune_operator.policy.announce import announcements
from finetune_operator.policy.draft import Draft
from finetune_operator.policy.effective import Effective, Problem, effective_spec
from finetune_operator.policy.failures import Failed, classify
from finetune_operator.policy.plan import ChildRequest, Plan


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What decisions depend on beside the objects."""

    default_image: str | None = None
    """Image of the trainer where neither job nor profile names one."""
    progress_seconds: float = 5.0
    """Least time between two writes that only carry progress."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What the flow below hands on: effects beside the status."""

    create: ChildRequest | None = None
    delete: tuple[str, ...] = ()
    requeue_after: float | None = None


def decide(view: View, now: datetime, settings: PolicySettings) -> Plan:
    """Return what to do about a job. Total: never raises for anything that a user or the cluster did."""
    job = view.job
    if job.deleting or is_terminal(job.status):
        return Plan()
    effective = effective_spec(job, view.profiles, settings.default_image)
    draft = Draft(job, now)
    if isinstance(effective, Problem):
        draft.condition(T.VALIDATED, False, effective.reason, effective.message)
        return _plan(view, draft, _Step(), None)
    _begin(draft, effective, now)
    step = _advance(view, draft, effective, now=now, settings=settings)
    return _plan(view, draft, step, effective)


def refused(job: JobView, now: datetime, message: str) -> Plan:
    """Return how the status says that the API server did not take the Job: a quota, a policy, a missing right."""
    draft = Draft(job, now)
    current = T.RUNNING if draft.is_true(T.PREPARED) else T.PREPARED
    draft.condition(current, False, Reason.JOB_REFUSED, message)
    return _plan(View(job=job), draft, _Step(), None)


def is_terminal(status: FineTuneJobStatus) -> bool:
    """Whether the job has ended: nothing is ever done about it again."""
    return any(item.type in (T.COMPLETE, T.FAILED) and item.status == "True" for item in status.conditions)


def _stage(draft: Draft) -> Stage:
    """The stage that the current attempt is in."""
    return "train" if draft.is_true(T.PREPARED) else "prepare"


def _plan(view: View, draft: Draft, step: _Step, effective: Effective | None) -> Plan:
    status = draft.finish()
    return Plan(
        status=status if status != view.job.status else None,
        effective=effective,
        create=step.create,
        delete=step.delete,
        events=tuple(announcements(view.job.status, status)),
        requeue_after=step.requeue_after,
    )


def _begin(draft: Draft, effective: Effective, now: datetime) -> None:
    """Record the run, once: number, time, and the profile as it is now."""
    draft.condition(T.VALIDATED, True, Reason.VALID, "the spec can be run")
    if draft.status.run is not None:
        return
    profile = effective.profile
    snapshot = profile and ProfileSnapshot(
        name=profile.name, generation=profile.generation, spec=profile.spec.to_wire()
    )
    resolved = ResolvedStatus(
        config_hash=effective.config_hash, image=effective.image, gpus=effective.gpus, profile=snapshot
    )
    draft.set(run=1, attempt=1, restarts=Restarts(), start_time=format_time(now), resolved=resolved)
    draft.condition(T.PREPARED, False, Reason.POD_PENDING, "the pod is being created")


def _advance(view: View, draft: Draft, effective: Effective, *, now: datetime, settings: PolicySettings) -> _Step:
    """Look at the current attempt's Job and go on from there."""
    stage = _stage(draft)
    child = _current(view, draft.status, stage)
    if child is None:
        return _missing(view, draft, effective, now=now)
    pods = tuple(pod for pod in view.pods if pod.child == child.name)
    draft.set(job=JobReference(name=child.name, uid=child.uid))
    if child.deleting and child.state == "active":
        return _deleted(draft, effective, now)
    if child.state == "failed":
        return _ended_badly(draft, effective, classify(child, pods), pods=pods, now=now)
    if child.state == "complete":
        return _complete(view, draft, effective, now=now)
    return _active(view, draft, effective, now=now, settings=settings)


def _current(view: View, status: FineTuneJobStatus, stage: str) -> ChildJob | None:
    wanted = (stage, status.run, status.attempt)
    return next((child for child in view.children if (child.stage, child.run, child.attempt) == wanted), None)


def _missing(view: View, draft: Draft, effective: Effective, *, now: datetime) -> _Step:
    if draft.status.job is not None:  # it was seen, and is gone
        return _deleted(draft, effective, now)
    due = retry.not_before(draft.status, effective.spec.lifecycle.retries)
    if due and now < due:
        return _Step(requeue_after=(due - now).total_seconds())
    alive = [pod for pod in view.pods if not pod.is_terminal and not waiting.is_lost(pod, now)]
    if alive:  # two attempts never run side by side; the pod's end is an event of its own
        ends = [lost for pod in alive if (lost := waiting.lost_after(pod))]
        return _Step(requeue_after=max(1.0, (min(ends) - now).total_seconds()) if ends else 30.0)
    return _Step(create=_request(draft))


def _request(draft: Draft) -> ChildRequest:
    status, failure = draft.status, draft.status.last_failure
    stage = _stage(draft)
    lost = failure is not None and failure.reason == Reason.RESULT_LOST and failure.stage == "train"
    return ChildRequest(stage=stage, run=status.run or 1, attempt=status.attempt or 1, collect=lost)


def _deleted(draft: Draft, effective: Effective, now: datetime) -> _Step:
    gone = Failed(FailureClass.DISRUPTED, Reason.JOB_DELETED, "the attempt's Job was deleted by somebody else")
    return _failed(draft, effective, gone, now=now)


def _complete(view: View, draft: Draft, effective: Effective, *, now: datetime) -> _Step:
    stage = _stage(draft)
    said = results.result_of(tuple(pod for pod in view.pods if _of(pod, draft)), stage)
    if said is None:
        lost = "the Job completed, but its pod's message is gone or was not written by the trainer"
        return _failed(draft, effective, Failed(FailureClass.DISRUPTED, Reason.RESULT_LOST, lost), now=now)
    if stage == "prepare":
        results.prepared(draft, said)
        draft.condition(T.RUNNING, False, Reason.POD_PENDING, "the pod is being created")
        return _missing(replace(view, pods=()), draft, effective, now=now)
    results.succeeded(draft, effective, said, now)
    return _Step()


def _ended_badly(
    draft: Draft, effective: Effective, failed: Failed, *, pods: tuple[PodView, ...], now: datetime
) -> _Step:
    """A run outside a gate has failed with all its outputs: where its message is lost they are collected."""
    if failed.exit_code == ExitCode.GATE_FAILED and _stage(draft) == "train":
        said = results.result_of(pods, "train")
        if said is None:
            lost = "a gate failed, but the pod's message with the result is gone"
            failed = replace(failed, failure_class=FailureClass.DISRUPTED, reason=Reason.RESULT_LOST, message=lost)
        else:
            results.take_over(draft, effective, said, now)
    return _failed(draft, effective, failed, now=now)


def _of(pod: PodView, draft: Draft) -> bool:
    return draft.status.job is not None and pod.child == draft.status.job.name


def _failed(draft: Draft, effective: Effective, failed: Failed, *, now: datetime) -> _Step:
    """Charge the failure, then either end the job or move on to the next attempt."""
    retries, status = effective.spec.lifecycle.retries, draft.status
    stage = _stage(draft)
    charged = retry.charge(status.restarts, failed.failure_class)
    final = retry.refusal(charged, failed.failure_class, failed.reason, retries)
    draft.set(restarts=charged, last_failure=_record(failed, status.attempt or 1, stage=stage, now=now), job=None)
    current = T.RUNNING if stage == "train" else T.PREPARED
    if stage == "train":
        draft.condition(T.PODS_READY, False, Reason.POD_FAILED, "the pods have ended")
    if final:
        draft.set(completion_time=format_time(now))
        draft.condition(current, False, Reason.POD_FAILED, failed.message)
        draft.condition(T.FAILED, True, final, failed.message)
        return _Step()
    draft.set(attempt=(status.attempt or 1) + 1)
    draft.condition(current, False, Reason.RESTARTING, f"{failed.reason}: {failed.message}")
    due = retry.not_before(draft.status, retries)
    return _Step(requeue_after=(due - now).total_seconds() if due else 0.0)


def _record(failed: Failed, attempt: int, *, stage: str, now: datetime) -> LastFailure:
    return LastFailure(
        failure_class=failed.failure_class,
        reason=failed.reason,
        exit_code=failed.exit_code,
        attempt=attempt,
        stage=stage,
        pod=failed.pod,
        message=failed.message,
        log_tail=failed.log_tail,
        time=format_time(now),
    )


def _active(view: View, draft: Draft, effective: Effective, *, now: datetime, settings: PolicySettings) -> _Step:
    pods = tuple(pod for pod in view.pods if _of(pod, draft))
    if any(waiting.is_lost(pod, now) for pod in pods):
        child = draft.status.job
        lost = Failed(FailureClass.DISRUPTED, Reason.EVICTED, "the node was lost with the pod on it")
        step = _failed(draft, effective, lost, now=now)
        return replace(step, delete=(child.name,) if child else ())
    _say_how_far(draft, pods, wanted=effective.spec.resources.nodes if _stage(draft) == "train" else 1)
    waits = [(due - now).total_seconds() for pod in pods if (due := waiting.lost_after(pod))]
    waits += _progress(view, draft, effective, now=now, settings=settings)
    return _Step(requeue_after=max(0.1, min(waits)) if waits else None)


def _say_how_far(draft: Draft, pods: tuple[PodView, ...], *, wanted: int) -> None:
    training = draft.is_true(T.PREPARED)
    main = "train" if training else "prepare"
    # A container that has ended is not starting again: its Job says in a moment how it went.
    runs = any(item.name == main and item.state != "waiting" for pod in pods for item in pod.containers)
    reason, message = waiting.why_waiting(pods)
    if not training:
        told = (Reason.PREPARING, "the data is being checked") if runs else (reason, message)
        draft.condition(T.PREPARED, False, *told)
        return
    # A pod whose share of the work is done before the first one's is not missing.
    there = sum(pod.ready or pod.phase == "Succeeded" for pod in pods)
    counted = f"{there} of {wanted} pods" if wanted > 1 else ""
    draft.condition(T.PODS_READY, there >= wanted, reason if not runs else Reason.TRAINING, counted)
    draft.condition(T.RUNNING, runs, *((Reason.TRAINING, "the trainer works") if runs else (reason, message)))


def _progress(
    view: View, draft: Draft, effective: Effective, *, now: datetime, settings: PolicySettings
) -> list[float]:
    """Take over the newest report, or return how long it has to wait."""
    report = view.report
    if report is None or report.pod_uid not in {pod.uid for pod in view.pods if _of(pod, draft)}:
        return []
    wait = progress.wait_seconds(draft.status.progress, now=now, least=settings.progress_seconds)
    if wait > 0:
        return [wait]
    progress.take_over(draft, report, effective.spec.output.uri)
    return []
