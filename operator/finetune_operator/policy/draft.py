"""The status under construction: conditions set one by one, then phase and kstatus computed from them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from finetune_operator.api.conditions import ConditionType as T
from finetune_operator.api.conditions import Phase, Reason
from finetune_operator.api.parse import format_time, parse_time
from finetune_operator.api.status import Condition, FineTuneJobStatus
from finetune_operator.api.views import JobView

_ORDER = {str(kind): place for place, kind in enumerate(T)}
MAX_MESSAGE = 1024


class Draft:
    """A status being decided: starts as what is stored, ends as what is to be stored."""

    def __init__(self, job: JobView, now: datetime) -> None:
        self._job, self.now = job, now
        self._conditions: dict[str, Condition] = {condition.type: condition for condition in job.status.conditions}
        self.status = job.status

    def set(self, **fields: Any) -> None:
        """Replace fields of the status."""
        self.status = self.status.model_copy(update=fields)

    def condition(self, kind: T, value: bool, reason: str, message: str = "") -> None:
        """Set a condition; its time moves only when its status changes."""
        status: Literal["True", "False"] = "True" if value else "False"
        old = self._conditions.get(kind)
        self._conditions[kind] = Condition(
            type=kind,
            status=status,
            reason=reason,
            message=message[:MAX_MESSAGE],
            last_transition_time=old.last_transition_time if old and old.status == status else format_time(self.now),
            observed_generation=self._job.generation,
        )

    def is_true(self, kind: T) -> bool:
        """Whether a condition holds, in this draft."""
        return kind in self._conditions and self._conditions[kind].status == "True"

    def since(self, kind: T) -> datetime | None:
        """When a condition became what it is."""
        return parse_time(self._conditions[kind].last_transition_time) if kind in self._conditions else None

    def reason(self, kind: T) -> str:
        """The reason of a condition, or nothing."""
        return self._conditions[kind].reason if kind in self._conditions else ""

    def message(self, kind: T) -> str:
        """The message of a condition, or nothing."""
        return self._conditions[kind].message if kind in self._conditions else ""

    @property
    def current(self) -> T:
        """The condition that tells how the stage goes that the job is in."""
        return T.RUNNING if self.is_true(T.PREPARED) else T.PREPARED

    @property
    def prepares_in_pod(self) -> bool:
        """Whether the training pod prepares the data itself."""
        return self.status.resolved is not None and self.status.resolved.prepares_in_pod is True

    def finish(self) -> FineTuneJobStatus:
        """Return the status with phase, kstatus conditions and generation in it."""
        phase = self._phase()
        self._kstatus(phase)
        ordered = sorted(self._conditions.values(), key=lambda item: _ORDER.get(item.type, len(_ORDER)))
        return self.status.model_copy(
            update={"phase": phase, "conditions": tuple(ordered), "observed_generation": self._job.generation}
        )

    def _phase(self) -> Phase:
        restarting = Reason.RESTARTING in (self.reason(T.PREPARED), self.reason(T.RUNNING))
        stages = (
            (self.is_true(T.COMPLETE), Phase.SUCCEEDED),
            (self.is_true(T.FAILED), Phase.FAILED),
            (not self.is_true(T.VALIDATED), Phase.PENDING),
            (self.is_true(T.SUSPENDED), Phase.SUSPENDED),
            (self.reason(T.SUSPENDED) == Reason.SUSPENDING, Phase.SUSPENDING),
            (restarting, Phase.RESTARTING),
            (self.prepares_in_pod and self.reason(T.PREPARED) == Reason.QUEUED, Phase.QUEUED),
            (not self.is_true(T.PREPARED), Phase.PREPARING),
            (self.is_true(T.RUNNING), Phase.RUNNING),
            (self.reason(T.RUNNING) == Reason.QUEUED, Phase.QUEUED),
        )
        return next((phase for holds, phase in stages if holds), Phase.STARTING)

    def _kstatus(self, phase: Phase) -> None:
        """Ready only when complete; Stalled when nothing moves until somebody acts (job-traps 23)."""
        why = next(kind for kind in self._telling(phase))
        reason, message = self.reason(why), self.message(why)
        blocked = phase == Phase.FAILED or (phase == Phase.PENDING and T.VALIDATED in self._conditions)
        self.condition(T.READY, phase == Phase.SUCCEEDED, reason, message)
        self.condition(T.RECONCILING, phase not in (Phase.SUCCEEDED, Phase.FAILED) and not blocked, reason, message)
        self.condition(T.STALLED, blocked, reason, message)

    def _telling(self, phase: Phase) -> list[T]:
        """The condition whose words describe the job best in a phase."""
        if phase in (Phase.SUCCEEDED, Phase.FAILED):
            return [T.COMPLETE if phase == Phase.SUCCEEDED else T.FAILED]
        if phase == Phase.PENDING:
            return [T.VALIDATED]
        if phase in (Phase.SUSPENDED, Phase.SUSPENDING):
            return [T.SUSPENDED]
        return [self.current]
