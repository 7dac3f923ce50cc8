"""Progress in the status: the newest post of a live pod of this attempt, written at most every few seconds."""

from __future__ import annotations

from datetime import datetime

from finetune_contract import paths
from finetune_contract.outcome import Usage
from finetune_operator.api.conditions import ConditionType as T
from finetune_operator.api.conditions import Reason
from finetune_operator.api.parse import format_time, later, parse_time
from finetune_operator.api.report import ProgressReport
from finetune_operator.api.status import CheckpointStatus, Progress
from finetune_operator.policy.draft import Draft

WRITES_A_SECOND = 66
"""Of progress, for all jobs together: an API server on two cores has the most of its time left."""


def take_over(draft: Draft, report: ProgressReport, output_uri: str) -> None:
    """Put a report into the status. What it does not say stays as it was."""
    old = draft.status.progress
    said = {
        "step": report.step,
        "total_steps": report.total_steps,
        "epoch": report.epoch,
        "percent": report.percent,
        "eta_seconds": report.eta_seconds,
        "eta": duration(report.eta_seconds),
        "loss": shown(report.loss),
        "eval_loss": shown(report.eval_loss),
        "learning_rate": report.learning_rate,
        "tokens_per_second": report.tokens_per_second,
        "mfu": shown(report.mfu),
        "overfitting_since_step": report.overfitting_since_step,
    }
    known = {name: value for name, value in said.items() if value is not None}
    base = old or Progress(updated_at=format_time(report.received_at))
    time = format_time(report.received_at)
    moved = {"last_step_time": time} if report.step is not None and report.step != (old and old.step) else {}
    draft.set(progress=base.model_copy(update={**known, **moved, "updated_at": time}))
    _usage(draft, report)
    if report.checkpoint_step is not None:
        _checkpoint(draft, report, output_uri)


def _usage(draft: Draft, report: ProgressReport) -> None:
    said = {"trained_tokens": report.trained_tokens, "gpu_seconds": report.gpu_seconds}
    known = {name: value for name, value in said.items() if value is not None}
    if known:
        draft.set(usage=(draft.status.usage or Usage()).model_copy(update=known))


def pace(least: float, *, jobs: int) -> float:
    """Return the least seconds between two writes of one job's progress where so many jobs post.

    A thousand jobs then write each 15 seconds: what they post in the meantime is seconds old, and nobody reads a
    thousand progress bars.
    """
    return max(least, jobs / WRITES_A_SECOND)


def wait_seconds(progress: Progress | None, *, now: datetime, least: float) -> float:
    """Return how long the next report has to wait."""
    last = parse_time(progress.updated_at) if progress else None
    return (later(last, least) - now).total_seconds() if last else 0.0


def shown(value: float | None) -> float | None:
    """Return a figure with the digits that people read in a table."""
    return None if value is None else float(f"{value:.4g}")


def duration(seconds: int | None) -> str | None:
    """Return seconds as people read them, in two units at most: 45s, 3m20s, 2h5m, 3d4h."""
    if seconds is None:
        return None
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    parts = [f"{value}{unit}" for value, unit in ((days, "d"), (hours, "h"), (minutes, "m"), (left, "s")) if value]
    return "".join(parts[:2]) or "0s"


def _checkpoint(draft: Draft, report: ProgressReport, output_uri: str) -> None:
    uri = paths.join(paths.run_uri(output_uri, draft.status.run or 1), paths.CHECKPOINTS)
    draft.set(
        checkpoint=CheckpointStatus(uri=uri, step=report.checkpoint_step, resumed_from_step=report.resumed_from_step)
    )
    draft.condition(
        T.CHECKPOINT_AVAILABLE, True, Reason.CHECKPOINTED, "the next attempt would go on from status.checkpoint.step"
    )
