"""How an attempt ends, and with it perhaps the job: the failure is charged, and the next attempt follows or none."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from finetune_contract.exit_codes import FailureClass
from finetune_operator.api.conditions import ConditionType as T
from finetune_operator.api.conditions import Reason
from finetune_operator.api.job import Retries
from finetune_operator.api.parse import format_time
from finetune_operator.api.status import LastFailure
from finetune_operator.api.views import Stage
from finetune_operator.policy import queueing, retry
from finetune_operator.policy.draft import MAX_MESSAGE, Draft
from finetune_operator.policy.effective import Effective
from finetune_operator.policy.failures import Failed
from finetune_operator.policy.step import Step


def current_stage(draft: Draft) -> Stage:
    """Return the stage whose Job the current attempt is."""
    return "train" if draft.prepares_in_pod else working_stage(draft)


def working_stage(draft: Draft) -> Stage:
    """Return the stage that is being worked on, in a Job of its own or not."""
    return "train" if draft.is_true(T.PREPARED) else "prepare"


def fail_attempt(draft: Draft, effective: Effective, failed: Failed, *, now: datetime) -> Step:
    """Charge the failure, then either end the job or move on to the next attempt."""
    retries, status = effective.spec.lifecycle.retries, draft.status
    stage = working_stage(draft)
    charged = retry.charge(status.restarts, failed.failure_class)
    final = retry.refusal(charged, failed.failure_class, failed.reason, retries)
    if failed.failure_class is FailureClass.OUT_OF_MEMORY and stage == "train":
        final = final or _take_less(draft, failed, retries)
    draft.set(last_failure=_record(failed, status.attempt or 1, stage=stage, now=now), job=None)
    if current_stage(draft) == "train":
        draft.condition(T.PODS_READY, False, Reason.POD_FAILED, "the pods have ended")
        queueing.leave(draft, Reason.POD_FAILED, "the attempt has ended")
    if final:
        fail_job(draft, final, failed.message, now=now)
        return Step()
    draft.set(restarts=charged, attempt=(status.attempt or 1) + 1)  # what is not tried again was not started again
    draft.condition(
        draft.current, False, Reason.RESTARTING, f"{failed.reason}: {failed.message}{_whence(draft, stage)}"
    )
    due = retry.not_before(draft.status, retries)
    return Step(requeue_after=(due - now).total_seconds() if due else 0.0)


def _whence(draft: Draft, stage: Stage) -> str:
    """Say where the next attempt begins."""
    if stage == "prepare":
        return ""
    there = draft.status.checkpoint if draft.is_true(T.CHECKPOINT_AVAILABLE) else None
    step = there.step if there else None
    return f"; attempt {draft.status.attempt} " + ("begins anew" if step is None else f"goes on from step {step}")


def _take_less(draft: Draft, failed: Failed, retries: Retries) -> str | None:
    """Have the next attempt take a smaller micro-batch; return the reason to end if there is none."""
    resolved = draft.status.resolved
    smaller = retry.smaller_micro_batch(resolved, retries)
    if resolved is None or smaller is None:
        return failed.reason
    draft.set(resolved=resolved.model_copy(update={"micro_batch_size": smaller}))
    return None


def give_up_attempt(draft: Draft, effective: Effective, failed: Failed, *, now: datetime) -> Step:
    """End an attempt that has not ended by itself."""
    child = draft.status.job
    step = fail_attempt(draft, effective, failed, now=now)
    return replace(step, delete=(child.name,) if child else ())


def fail_late(draft: Draft, reason: str, message: str, *, pod: str | None, now: datetime) -> None:
    """End the job since a deadline has passed; a failure that was to be retried is told beside."""
    before, attempt = draft.status.last_failure, draft.status.attempt or 1
    if before and before.attempt == attempt - 1 and draft.status.job is None:
        message = f"{message}. Attempt {before.attempt} had failed: {before.reason}: {before.message}"[:MAX_MESSAGE]
    failed = Failed(FailureClass.DEADLINE, reason, message, pod=pod)
    draft.set(last_failure=_record(failed, attempt, stage=working_stage(draft), now=now))
    fail_job(draft, reason, message, now=now)


def fail_job(draft: Draft, reason: str, message: str, *, now: datetime) -> None:
    """End the job for good."""
    draft.set(completion_time=format_time(now))
    if draft.is_true(T.PODS_READY):
        draft.condition(T.PODS_READY, False, Reason.POD_FAILED, "the pods end")
    queueing.leave(draft, Reason.POD_FAILED, "the job has ended")
    draft.condition(draft.current, False, Reason.POD_FAILED, message)
    draft.condition(T.FAILED, True, reason, message)


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
