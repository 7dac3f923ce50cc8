"""Which changes of status are worth an Event: transitions of conditions, never repetition."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_operator.api.conditions import ConditionType as T
from finetune_operator.api.conditions import Reason
from finetune_operator.api.status import Condition, FineTuneJobStatus
from finetune_operator.policy.plan import EventRequest

_NEWS = (
    T.VALIDATED,
    T.PREPARED,
    T.QUOTA_RESERVED,
    T.RUNNING,
    T.SUSPENDED,
    T.CHECKPOINT_AVAILABLE,
    T.COMPLETE,
    T.FAILED,
)
_WARNINGS = {
    Reason.UNSCHEDULABLE,
    Reason.IMAGE_PULL,
    Reason.CONTAINER_CONFIG,
    Reason.JOB_REFUSED,
    Reason.PODS_REFUSED,
    Reason.MOUNT_FAILED,
    Reason.RESTARTING,
    Reason.KUEUE_NOT_SERVED,
    Reason.PREEMPTED,
}
_PASSING = {Reason.WAITING_FOR_KUEUE, "Pending", "PendingEvaluation", Reason.SUCCEEDED, Reason.POD_FAILED}
"""Reasons of QuotaReserved that another one follows at once, or that the job's end says better."""


def announcements(old: FineTuneJobStatus, new: FineTuneJobStatus) -> Iterator[EventRequest]:
    """Yield an Event for a new run, and for each condition that became something else to a person."""
    if old.run is not None and new.run != old.run and new.outputs is None:  # else it has taken over an earlier one's
        stays = f"run {new.run} begins; what run {old.run} left in storage stays"
        yield EventRequest(type="Normal", reason=Reason.NEW_RUN, message=stays)
    before = {condition.type: condition for condition in old.conditions}
    for condition in new.conditions:
        was = before.get(condition.type)
        if condition.type in _NEWS and _is_news(was, condition):
            yield EventRequest(type=_severity(condition), reason=condition.reason, message=condition.message)


def _is_news(was: Condition | None, now: Condition) -> bool:
    if was is None and now.reason == Reason.VALID:  # so is nearly every job: an Event each would say nothing
        return False
    changed = was is None or (was.status, was.reason) != (now.status, now.reason)
    if now.type == T.QUOTA_RESERVED:
        return changed and now.reason not in _PASSING
    return changed and (now.status == "True" or _severity(now) == "Warning")


def _severity(condition: Condition) -> str:
    bad = condition.type == T.FAILED and condition.status == "True"
    blocked = condition.type == T.VALIDATED and condition.status == "False"
    return "Warning" if bad or blocked or condition.reason in _WARNINGS else "Normal"
