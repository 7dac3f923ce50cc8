"""A FineTuneJob as lines for people: from the object that the API serves, whatever of it is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from finetune_operator.api.conditions import ConditionType as T
from finetune_operator.api.conditions import Phase
from finetune_operator.api.parse import parse_job, parse_time
from finetune_operator.api.status import FineTuneJobStatus, Progress, QueueStatus
from finetune_operator.api.views import JobView
from finetune_operator.cli.results import comparison, labelled
from finetune_operator.policy.progress import duration

_COLUMNS = ("NAME", "METHOD", "PHASE", "PROGRESS", "LOSS", "ETA", "AGE")
_MOVING = (Phase.RUNNING, Phase.SUCCEEDED)


def table(jobs: Iterable[dict[str, Any]], now: datetime) -> Iterator[str]:
    """Yield a line a job, the youngest last."""
    rows = [_COLUMNS, *(_row(job, now) for job in sorted(jobs, key=lambda job: _created(job) or now))]
    if len(rows) == 1:
        yield "there are no FineTuneJobs in this namespace"
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        yield "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def describe(body: dict[str, Any], now: datetime) -> Iterator[str]:
    """Yield all that a user asks of one job."""
    job = parse_job(body)
    yield labelled("job", f"{job.namespace}/{job.name}: {_what(job)}")
    yield labelled("phase", _phase(job.status))
    if told := _run(job.status, now):
        yield labelled("run", told)
    if job.status.queue:
        yield labelled("queue", _queue(job.status.queue, now))
    if job.status.progress:
        yield labelled("progress", progress_line(job.status.progress))
    yield from _remarks(job.status)
    if job.status.outputs:
        yield labelled("outputs", job.status.outputs.uri)
    if job.status.evaluation:
        yield ""
        yield from comparison(job.status.evaluation)


def progress_line(progress: Progress) -> str:
    """Return where training stands, in one line; what is not known is left out."""
    parts = [f"step {progress.step}/{progress.total_steps}" if progress.step is not None else ""]
    parts.append(f"{progress.percent} %" if progress.percent is not None else "")
    parts.append(f"loss {progress.loss:g}" if progress.loss is not None else "")
    parts.append(f"held out {progress.eval_loss:g}" if progress.eval_loss is not None else "")
    return "  ".join(part for part in (*parts, speed_of(progress), eta_of(progress)) if part)


def speed_of(progress: Progress) -> str:
    """Return how fast training goes; empty if it is not known."""
    parts = [f"{progress.tokens_per_second:,.0f} tokens/s" if progress.tokens_per_second else ""]
    parts.append(f"MFU {progress.mfu:.0%}" if progress.mfu else "")
    return "  ".join(part for part in parts if part)


def eta_of(progress: Progress) -> str:
    """Return how long training still takes; empty when it has ended or nothing is known."""
    return f"ETA {progress.eta}" if progress.eta and progress.eta_seconds else ""


def message_of(status: FineTuneJobStatus, kind: T) -> str:
    """Return what a condition says, with its reason; empty if it is not there."""
    found = status.condition(kind)
    return f"{found.reason}: {found.message}" if found and found.message else found.reason if found else ""


def _row(body: dict[str, Any], now: datetime) -> tuple[str, ...]:
    job = parse_job(body)
    progress, created = job.status.progress, _created(body)
    percent = f"{progress.percent} %" if progress and progress.percent is not None else ""
    loss = f"{progress.loss:g}" if progress and progress.loss is not None else ""
    eta = progress.eta or "" if progress and job.status.phase == Phase.RUNNING else ""
    age = duration(int((now - created).total_seconds())) if created else None
    return job.name, str(job.spec.get("method", "")), str(job.status.phase or "-"), percent, loss, eta, age or ""


def _created(body: dict[str, Any]) -> datetime | None:
    return parse_time(body["metadata"].get("creationTimestamp"))


def _what(job: JobView) -> str:
    return f"{job.spec.get('method', '?')} of {(job.spec.get('model') or {}).get('uri', '?')}"


def _phase(status: FineTuneJobStatus) -> str:
    if status.phase is None:
        return "not seen by an operator yet"
    why = message_of(status, T.READY)
    return f"{status.phase}" + (f", {why}" if why and status.phase not in _MOVING else "")


def _run(status: FineTuneJobStatus, now: datetime) -> str:
    if status.run is None or status.restarts is None:
        return ""
    begun, ended = parse_time(status.start_time), parse_time(status.completion_time)
    lasted = duration(int(((ended or now) - begun).total_seconds())) if begun else None
    counted = [f"{status.restarts.failures} retried" if status.restarts.failures else ""]
    counted.append(f"{status.restarts.disruptions} disrupted" if status.restarts.disruptions else "")
    ends = ", ".join(part for part in counted if part)
    return (
        f"{status.run}, attempt {status.attempt}" + (f" ({ends})" if ends else "") + (f", {lasted}" if lasted else "")
    )


def _queue(queue: QueueStatus, now: datetime) -> str:
    since = parse_time(queue.waiting_since)
    waits = f"waits for {duration(int((now - since).total_seconds()))}" if since else ""
    waited = f"waited {duration(queue.waited_seconds)} before" if queue.waited_seconds else ""
    return ", ".join(part for part in (queue.name or "default", waits, waited) if part)


def _remarks(status: FineTuneJobStatus) -> Iterator[str]:
    if status.checkpoint and status.checkpoint.step is not None and not status.outputs:
        yield labelled("kept", f"a checkpoint of step {status.checkpoint.step} at {status.checkpoint.uri}")
    if failure := status.last_failure:
        code = f", exit code {failure.exit_code}" if failure.exit_code is not None else ""
        yield labelled("failed", f"attempt {failure.attempt}, {failure.reason}{code}: {failure.message}")
    for warning in status.dataset.warnings if status.dataset else ():
        yield labelled("warning", warning)
