"""A job's life as spans, from the times in its status: each is made when the status that ends it is written."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from finetune_contract.tracing import Attributes, RunTrace, Span
from finetune_operator.api.conditions import ConditionType as T
from finetune_operator.api.conditions import Phase
from finetune_operator.api.parse import parse_time
from finetune_operator.api.status import FineTuneJobStatus, LastFailure
from finetune_operator.api.views import JobView

_ENDED = (Phase.SUCCEEDED, Phase.FAILED)
_BILLION = 1_000_000_000


def life_of(job: JobView, new: FineTuneJobStatus) -> Iterator[Span]:
    """Yield what has ended by the change from the job's status to the new one."""
    old = job.status
    if old.run is None and new.run is None:
        return
    yield from _prepare(job, new)
    yield from _start(job, new)
    yield from _train(job, new)
    yield from _suspension(job, new)
    if new.phase in _ENDED and old.phase not in _ENDED:
        yield from _whole(job, new)


def _prepare(job: JobView, new: FineTuneJobStatus) -> Iterator[Span]:
    old, failure = job.status, _failure(job.status, new)
    if _is_true(new, T.PREPARED) and not _is_true(old, T.PREPARED):
        yield from _span(job, new, "prepare", start=_attempt_start(old, new), end=_since(new, T.PREPARED))
    elif failure and failure.stage == "prepare":
        begun = _attempt_start(old, new)
        yield from _span(job, old, "prepare", start=begun, end=failure.time, error=failure.reason)


def _start(job: JobView, new: FineTuneJobStatus) -> Iterator[Span]:
    if _is_true(new, T.RUNNING) and not _is_true(job.status, T.RUNNING):
        asked = _since(job.status, T.RUNNING) or _since(new, T.PREPARED)
        yield from _span(job, new, "start", start=asked, end=_since(new, T.RUNNING))


def _train(job: JobView, new: FineTuneJobStatus) -> Iterator[Span]:
    old, failure = job.status, _failure(job.status, new)
    if _is_true(old, T.RUNNING) and (new.phase in _ENDED or not _is_true(new, T.RUNNING)):
        end = new.completion_time if new.phase in _ENDED else _since(new, T.RUNNING)
        error = failure.reason if failure else ""
        yield from _span(job, old, "train", start=_since(old, T.RUNNING), end=end, error=error)
    elif failure and failure.stage != "prepare":
        # It was seen to have stopped before it was known why, or it never got going.
        begun = _since(old, T.RUNNING) or failure.time
        yield from _span(job, old, "failed", start=begun, end=failure.time, error=failure.reason)


def _suspension(job: JobView, new: FineTuneJobStatus) -> Iterator[Span]:
    if _is_true(job.status, T.SUSPENDED) and not _is_true(new, T.SUSPENDED):
        begun = _since(job.status, T.SUSPENDED)
        yield from _span(job, new, "suspended", start=begun, end=_since(new, T.SUSPENDED))


def _whole(job: JobView, new: FineTuneJobStatus) -> Iterator[Span]:
    trace, usage = RunTrace(job.uid, new.run or 1), new.usage
    start, end = _nanoseconds(new.start_time), _nanoseconds(new.completion_time)
    if start is None or end is None:
        return
    used: Attributes = usage.to_wire() if usage else {}  # type: ignore[assignment] # numbers
    failed = new.phase == Phase.FAILED and new.last_failure
    yield Span(
        name="FineTuneJob",
        trace=trace.trace,
        identity=trace.root,
        parent=None,
        start=start,
        end=end,
        attributes={**_about(job, new), **{f"finetune.{name}": value for name, value in used.items()}},
        error=failed.reason if failed else "",
    )


def _span(
    job: JobView, status: FineTuneJobStatus, name: str, *, start: str | None, end: str | None, error: str = ""
) -> Iterator[Span]:
    begun, ended = _nanoseconds(start), _nanoseconds(end)
    if begun is None or ended is None:
        return
    trace = RunTrace(job.uid, status.run or 1)
    about = _about(job, status)
    yield Span(name, trace.trace, trace.root, begun, max(begun, ended), attributes=about, error=error)


def _about(job: JobView, status: FineTuneJobStatus) -> dict[str, str | int]:
    where = {"k8s.namespace.name": job.namespace, "finetune.job": job.name}
    return {**where, "finetune.run": status.run or 1, "finetune.attempt": status.attempt or 1}


def _failure(old: FineTuneJobStatus, new: FineTuneJobStatus) -> LastFailure | None:
    return new.last_failure if new.last_failure != old.last_failure else None


def _attempt_start(old: FineTuneJobStatus, new: FineTuneJobStatus) -> str | None:
    return old.last_failure.time if old.last_failure else new.start_time


def _is_true(status: FineTuneJobStatus, kind: T) -> bool:
    found = status.condition(kind)
    return found is not None and found.status == "True"


def _since(status: FineTuneJobStatus, kind: T) -> str | None:
    found = status.condition(kind)
    return found.last_transition_time if found else None


def _nanoseconds(text: str | None) -> int | None:
    time: datetime | None = parse_time(text)
    return int(time.timestamp()) * _BILLION if time else None
