"""What `finetune watch` shows: a picture of a job made from its object, its Events and the losses seen so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_operator.api.conditions import ConditionType as T
from finetune_operator.api.conditions import Phase
from finetune_operator.api.parse import parse_job
from finetune_operator.api.status import FineTuneJobStatus, Progress
from finetune_operator.cli.job_lines import eta_of, message_of, speed_of

_COLOURS = {Phase.SUCCEEDED: "green", Phase.FAILED: "red", Phase.RESTARTING: "yellow", Phase.SUSPENDED: "yellow"}
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH, _EVENTS, _BAR = 60, 6, 40


@dataclass(slots=True)
class History:
    """Losses by step, as far as the watching has seen them."""

    losses: dict[int, float] = field(default_factory=dict)

    def see(self, status: FineTuneJobStatus) -> None:
        """Take over what the status reports."""
        progress = status.progress
        if progress and progress.step is not None and progress.loss is not None:
            self.losses[progress.step] = progress.loss


def picture(body: dict[str, Any], events: Sequence[dict[str, Any]], history: History) -> Panel:
    """Return the view of a job: where it stands, how the loss went, and what happened last."""
    job = parse_job(body)
    phase = job.status.phase or Phase.PENDING
    colour = _COLOURS.get(phase, "cyan")
    title = Text.assemble((f" {job.namespace}/{job.name} ", "bold"), (f"{phase} ", colour))
    parts: list[RenderableType] = [_facts(job.status), Text(), *map(_event, events[-_EVENTS:])]
    if job.status.progress:
        parts[:0] = [_bar(job.status.progress, colour), Text(sparkline(list(history.losses.values())), colour)]
    return Panel(Group(*parts), title=title, title_align="left", border_style=colour, expand=False)


def sparkline(values: Sequence[float], *, width: int = _WIDTH) -> str:
    """Return a curve of one line: means of equal parts where there are more values than places."""
    if not values:
        return ""
    shown = [_mean(values, place, width) for place in range(width)] if len(values) > width else list(values)
    low, high = min(shown), max(shown)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in shown)


def _mean(values: Sequence[float], place: int, width: int) -> float:
    part = values[len(values) * place // width : len(values) * (place + 1) // width]
    return sum(part) / len(part)


def _bar(progress: Progress, colour: str) -> Table:
    row = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=100, completed=progress.percent or 0, width=_BAR, complete_style=colour)
    steps = f"{progress.step}/{progress.total_steps}" if progress.step is not None else ""
    row.add_row(bar, f"{progress.percent or 0} %", steps, eta_of(progress))
    return row


def _facts(status: FineTuneJobStatus) -> Table:
    grid = Table.grid(padding=(0, 2))
    progress = status.progress
    if progress and progress.loss is not None:
        held_out = f"held out {progress.eval_loss:g}" if progress.eval_loss is not None else ""
        grid.add_row("loss", f"{progress.loss:g}  {held_out}".rstrip())
    if progress and progress.tokens_per_second:
        grid.add_row("speed", speed_of(progress))
    if status.run is not None and status.restarts is not None:
        ends = f"  {status.restarts.failures} retried, {status.restarts.disruptions} disrupted"
        grid.add_row("run", f"{status.run}, attempt {status.attempt}{ends if any(_counts(status)) else ''}")
    if status.checkpoint and status.checkpoint.step is not None:
        grid.add_row("checkpoint", f"step {status.checkpoint.step}")
    if why := message_of(status, T.READY):
        grid.add_row("", Text(why, overflow="fold"))
    if status.outputs:
        grid.add_row("outputs", Text(status.outputs.uri, overflow="fold"))
    return grid


def _counts(status: FineTuneJobStatus) -> tuple[int, int]:
    return (status.restarts.failures, status.restarts.disruptions) if status.restarts else (0, 0)


def _event(event: dict[str, Any]) -> Text:
    time = _clock(event.get("lastTimestamp"))
    style = "yellow" if event.get("type") == "Warning" else "default"
    return Text.assemble((f"{time}  ", "dim"), (f"{event.get('reason', '')}  ", style), str(event.get("message", "")))


def _clock(text: str | None) -> str:
    return f"{datetime.fromisoformat(text):%H:%M:%S}" if text else ""
