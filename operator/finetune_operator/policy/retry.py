"""Whether another attempt is made, and when.

Errors of the user and a loss that is not finite end the job: the same attempt would fail the same way.
Disruptions are not charged to the budget, but have a cap and a backoff of their own (job-traps 6).
"""

from __future__ import annotations

from datetime import datetime

from finetune_contract.exit_codes import FailureClass
from finetune_operator.api.conditions import Reason
from finetune_operator.api.job import OnOutOfMemory, Retries
from finetune_operator.api.parse import later, parse_time
from finetune_operator.api.status import FineTuneJobStatus, ResolvedStatus, Restarts

MAX_DISRUPTIONS = 100
MAX_BACKOFF = 300
_FINAL = {FailureClass.USER_ERROR, FailureClass.NON_FINITE}


def charge(restarts: Restarts | None, failure_class: FailureClass) -> Restarts:
    """Return the counters with one more failure or disruption, as they are if it is tried again."""
    now = restarts or Restarts()
    if failure_class is FailureClass.DISRUPTED:
        return Restarts(failures=now.failures, disruptions=now.disruptions + 1)
    return Restarts(failures=now.failures + 1, disruptions=now.disruptions)


def refusal(charged: Restarts, failure_class: FailureClass, reason: str, retries: Retries) -> str | None:
    """Return the reason for which the job fails for good, or None if another attempt is made."""
    if failure_class in _FINAL:
        return reason
    if charged.failures > retries.max:
        # With no retries at all the failure itself is the better word.
        return reason if retries.max == 0 else Reason.RESTART_BUDGET_EXCEEDED
    return Reason.RESTART_BUDGET_EXCEEDED if charged.disruptions > MAX_DISRUPTIONS else None


def smaller_micro_batch(resolved: ResolvedStatus | None, retries: Retries) -> int | None:
    """Return the micro-batch to try after memory ran out in training, or None if there is none."""
    if resolved is None or resolved.training is None or retries.on_out_of_memory is OnOutOfMemory.FAIL:
        return None
    return (resolved.micro_batch_size or resolved.training.micro_batch_size) // 2 or None


def not_before(status: FineTuneJobStatus, retries: Retries) -> datetime | None:
    """Return when the next attempt may start, or None if there was no failure to wait after."""
    failure = status.last_failure
    time = parse_time(failure.time) if failure else None
    if not failure or not time or status.attempt != failure.attempt + 1:
        return None
    return later(time, _backoff(status.restarts or Restarts(), failure.failure_class, retries))


def _backoff(restarts: Restarts, failure_class: FailureClass, retries: Retries) -> float:
    disrupted = failure_class is FailureClass.DISRUPTED
    base, count = (1, restarts.disruptions) if disrupted else (retries.backoff_seconds, restarts.failures)
    return float(min(MAX_BACKOFF, base * 2 ** min(max(count - 1, 0), 16)))
