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
from finetune_operator.api.profile import PrepareMode
from finetune_operator.api.status import (
    FineTuneJobStatus,
    JobReference,
    ProfileSnapshot,
    ResolvedStatus,
    Restarts,
)
from finetune_operator.api.views import ChildJob, JobView, PodView, View
from finetune_operator.policy import cleanup, deadlines, rerun, results, retry, suspension, waiting
from finetune_operator.policy.active import go_on
from finetune_operator.policy.announce import announcements
from finetune_operator.policy.draft import Draft
from finetune_operator.policy.effective import Effective, Problem, effective_spec
from finetune_operator.policy.ending import current_stage, fail_attempt, fail_late
from finetune_operator.policy.failures import Failed, classify
from finetune_operator.policy.gpus import gpu_of
from finetune_operator.policy.plan import ChildRequest, Plan
from finetune_operator.policy.step import Step


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What decisions depend on beside the objects."""

    default_image: str | None = None
    """Image of the trainer where neither job nor profile names one."""
    progress_seconds: float = 5.0
    """Least time between two writes that only carry progress."""
    require_profile: bool = True
    """Whether a job needs an applicable profile as soon as there is any."""


def decide(view: View, now: datetime, settings: PolicySettings) -> Plan:
    """Return what to do about a job. Total: never raises for anything that a user or the cluster did."""
    if view.job.deleting:
        return Plan()
    ended = is_terminal(view.job.status)
    if ended and not rerun.may_be_wanted(view):
        return cleanup.after_end(view, now)
    effective = _effective(view, settings)
    if rerun.is_wanted(view, effective):
        view = rerun.forget_run(view)
        effective = _effective(view, settings)
    elif ended:
        return replace(cleanup.after_end(view, now), status=_seen(view, now))
    return _go_on(view, effective, now=now, settings=settings)


def _effective(view: View, settings: PolicySettings) -> Effective | Problem:
    image, required = settings.default_image, settings.require_profile
    return effective_spec(view.job, view.profiles, image, profile_required=required)


def _seen(view: View, now: datetime) -> FineTuneJobStatus | None:
    """Return the status of a job that has ended with the generation in it, which kstatus compares; None if it is."""
    status = view.job.status
    return Draft(view.job, now).finish() if status.observed_generation != view.job.generation else None


def _go_on(view: View, effective: Effective | Problem, *, now: datetime, settings: PolicySettings) -> Plan:
    draft = Draft(view.job, now)
    if isinstance(effective, Problem):
        draft.condition(T.VALIDATED, False, effective.reason, effective.message)
        return _plan(view, draft, Step(), None)
    draft.condition(T.VALIDATED, True, Reason.VALID, "the spec can be run")
    _recall(view, draft)
    step = _held(view, draft, effective, now=now)
    if step is None:
        _begin(view, draft, effective, now=now)
        step = _late(view, draft, effective, now=now) or _advance(view, draft, effective, now=now, settings=settings)
    return _plan(view, draft, step, effective)


def _recall(view: View, draft: Draft) -> None:
    """Take a Job for seen that went before the status said that it was there: its name is used (job-traps 3)."""
    gone, status = view.gone, draft.status
    if gone is None or status.job is not None:
        return
    if (gone.stage, gone.run, gone.attempt) == (current_stage(draft), status.run, status.attempt):
        draft.set(job=JobReference(name=gone.name, uid=gone.uid))


def _held(view: View, draft: Draft, effective: Effective, *, now: datetime) -> Step | None:
    """Return what a suspension asks for, or its end; None where the job goes on."""
    child = _current(view, draft)
    wanted = suspension.suspend if effective.spec.lifecycle.suspend else suspension.resume
    return wanted(draft, child, view.pods, now=now)


def _late(view: View, draft: Draft, effective: Effective, *, now: datetime) -> Step | None:
    """Return how the job ends if a deadline has passed."""
    late = deadlines.exceeded(draft.status, effective.spec.lifecycle, now)
    child = _current(view, draft)
    if late is None or (child and child.state != "active"):  # how it ended comes first
        return None
    pod = next((pod.name for pod in view.pods if child and pod.child == child.name), None)
    fail_late(draft, *late, pod=pod, now=now)
    return Step(delete=(child.name,) if child and not child.deleting else ())


def current_child(view: View, now: datetime) -> ChildJob | None:
    """Return the attempt's Job as it is known, also where the status does not say yet that it is there."""
    return _current(view, Draft(view.job, now))


def refused(job: JobView, now: datetime, message: str) -> Plan:
    """Return how the status says that the API server did not take the Job: a quota, a policy, a missing right."""
    draft = Draft(job, now)
    draft.condition(draft.current, False, Reason.JOB_REFUSED, message)
    return _plan(View(job=job), draft, Step(), None)


def denied(job: JobView, effective: Effective, now: datetime, message: str) -> Plan:
    """Return what follows where a policy takes no such Job: one for prepare is done without, if one pod trains.

    As where every Job has to name a queue, which the training Job does (job-traps 10).
    """
    resolved, draft = job.status.resolved, Draft(job, now)
    if resolved is None or current_stage(draft) == "train" or not _can_prepare_in_pod(effective):
        return refused(job, now, message)
    draft.set(resolved=resolved.model_copy(update={"prepares_in_pod": True}))
    message = f"the training pod prepares, since the Job for it was refused: {message}"
    draft.condition(T.PREPARED, False, Reason.JOB_REFUSED, message)
    return _plan(View(job=job), draft, Step(), None)


def is_terminal(status: FineTuneJobStatus) -> bool:
    """Whether the job has ended: nothing follows but a new run, if one is asked for, and what cleans up."""
    return any(item.type in (T.COMPLETE, T.FAILED) and item.status == "True" for item in status.conditions)


def _plan(view: View, draft: Draft, step: Step, effective: Effective | None) -> Plan:
    status = draft.finish()
    held = _held_back(view, status, now=draft.now)
    if held is not None:
        return Plan(effective=effective, requeue_after=_look_again(status, step, effective, draft.now, held))
    return Plan(
        status=status if status != view.job.status else None,
        effective=effective,
        create=step.create,
        delete=tuple(dict.fromkeys((*step.delete, *rerun.left_over(view, status)))),
        events=tuple(announcements(view.job.status, status)),
        requeue_after=_look_again(status, step, effective, draft.now),
    )


def _held_back(view: View, status: FineTuneJobStatus, *, now: datetime) -> float | None:
    """Return how long a write can wait that would say of a new Job that it is there, and nothing else.

    Mostly its pod brings news within a second or two: then one write says both. Until then nothing has run.
    """
    old, new = view.job.status, status.job
    if new is None or new == old.job or status.model_copy(update={"job": old.job}) != old:
        return None
    child = next((child for child in view.children if child.uid == new.uid), None)
    if child is None or child.created_at is None or child.state != "active" or child.deleting:
        return None
    age = (now - child.created_at).total_seconds()
    return waiting.PODLESS_SECONDS - age if -1.0 <= age < waiting.PODLESS_SECONDS else None


def _look_again(
    status: FineTuneJobStatus, step: Step, effective: Effective | None, now: datetime, held: float | None = None
) -> float | None:
    """Return when to decide again, at the next deadline at the latest."""
    waits = [step.requeue_after, held]
    if effective and not effective.spec.lifecycle.suspend and not is_terminal(status):
        waits.append(deadlines.next_due(status, effective.spec.lifecycle, now))
    return min((wait for wait in waits if wait is not None), default=None)


def _begin(view: View, draft: Draft, effective: Effective, *, now: datetime) -> None:
    """Record the run, once: number, time, and the profile as it is now."""
    if draft.status.resolved is not None:
        return
    profile = effective.profile
    snapshot = profile and ProfileSnapshot(
        name=profile.name, generation=profile.generation, spec=profile.spec.to_wire()
    )
    resolved = ResolvedStatus(
        config_hash=effective.config_hash,
        image=effective.image,
        gpus=effective.gpus,
        gpu=gpu_of(effective.spec, effective.profile_spec, view.gpu_nodes),
        profile=snapshot,
        defaults=effective.defaults or None,
        prepares_in_pod=_prepares_in_pod(effective) or None,
    )
    number = rerun.last_run(view) + 1
    draft.set(run=number, attempt=1, restarts=Restarts(), start_time=format_time(now), resolved=resolved)
    draft.set(rerun=view.job.rerun)
    draft.condition(T.PREPARED, False, Reason.POD_PENDING, "the pod is being created")


def _prepares_in_pod(effective: Effective) -> bool:
    """Whether the training pod is to prepare from the beginning."""
    return effective.profile_spec.prepare.mode is PrepareMode.IN_POD and _can_prepare_in_pod(effective)


def _can_prepare_in_pod(effective: Effective) -> bool:
    """Whether the training pod may prepare: one of several would have the others wait for it."""
    return effective.spec.resources.nodes == 1


def _advance(view: View, draft: Draft, effective: Effective, *, now: datetime, settings: PolicySettings) -> Step:
    """Look at the current attempt's Job and go on from there."""
    stage, child = current_stage(draft), _current(view, draft)
    if child is None:
        return _missing(view, draft, effective, now=now)
    pods = tuple(pod for pod in view.pods if pod.child == child.name)
    draft.set(job=JobReference(name=child.name, uid=child.uid))
    if stage == "train" and results.prepared_in_pod(draft, effective, pods, now):
        return Step()  # the rest of the pod ends with the job
    if child.deleting and child.state == "active":
        return _deleted(draft, effective, now)
    if child.state == "failed":
        return _ended_badly(draft, effective, classify(child, pods), pods=pods, now=now)
    if child.state == "complete":
        return _complete(view, draft, effective, now=now)
    return go_on(view, draft, effective, child=child, least=settings.progress_seconds)


def _current(view: View, draft: Draft) -> ChildJob | None:
    wanted = (current_stage(draft), draft.status.run, draft.status.attempt)
    return next((child for child in view.children if (child.stage, child.run, child.attempt) == wanted), None)


def _missing(view: View, draft: Draft, effective: Effective, *, now: datetime) -> Step:
    if draft.status.job is not None:  # it was seen, and is gone
        return _deleted(draft, effective, now)
    due = retry.not_before(draft.status, effective.spec.lifecycle.retries)
    if due and now < due:
        return Step(requeue_after=(due - now).total_seconds())
    # Two attempts never run side by side; a pod's end is an event of its own.
    if (wait := waiting.until_gone(view.pods, now)) is not None:
        return Step(requeue_after=wait)
    return Step(create=_request(draft), requeue_after=waiting.PODLESS_SECONDS)


def _request(draft: Draft) -> ChildRequest:
    status, failure = draft.status, draft.status.last_failure
    stage = current_stage(draft)
    lost = failure is not None and failure.reason == Reason.RESULT_LOST and failure.stage == "train"
    return ChildRequest(stage=stage, run=status.run or 1, attempt=status.attempt or 1, collect=lost)


def _deleted(draft: Draft, effective: Effective, now: datetime) -> Step:
    gone = Failed(FailureClass.DISRUPTED, Reason.JOB_DELETED, "the attempt's Job was deleted by somebody else")
    return fail_attempt(draft, effective, gone, now=now)


def _complete(view: View, draft: Draft, effective: Effective, *, now: datetime) -> Step:
    stage = current_stage(draft)
    said = results.result_of(tuple(pod for pod in view.pods if _of(pod, draft)), stage)
    if said is None:
        lost = "the Job completed, but its pod's message is gone or was not written by the trainer"
        return fail_attempt(draft, effective, Failed(FailureClass.DISRUPTED, Reason.RESULT_LOST, lost), now=now)
    if said.prepared and stage == "prepare":
        results.prepared(draft, said)
        draft.condition(T.RUNNING, False, Reason.POD_PENDING, "the pod is being created")
        return _missing(replace(view, pods=()), draft, effective, now=now)
    results.succeeded(draft, effective, said, now)
    return Step()


def _ended_badly(
    draft: Draft, effective: Effective, failed: Failed, *, pods: tuple[PodView, ...], now: datetime
) -> Step:
    """A run outside a gate has failed with all its outputs: where its message is lost they are collected."""
    if failed.exit_code == ExitCode.GATE_FAILED:
        said = results.result_of(pods, current_stage(draft))
        if said is None:
            lost = "a gate failed, but the pod's message with the result is gone"
            failed = replace(failed, failure_class=FailureClass.DISRUPTED, reason=Reason.RESULT_LOST, message=lost)
        else:
            results.take_over(draft, effective, said, now)
    return fail_attempt(draft, effective, failed, now=now)


def _of(pod: PodView, draft: Draft) -> bool:
    return draft.status.job is not None and pod.child == draft.status.job.name
