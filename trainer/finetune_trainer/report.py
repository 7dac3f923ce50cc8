"""report.html: one page without outside resources that shows what was trained on, how it went and what came out.

The curves are SVG drawn here; the template escapes every value, since prompts and answers may hold anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from finetune_contract.samples import Sample
from finetune_trainer.card import gate_rows, lineage_rows, score_rows, training_rows
from finetune_trainer.summary import Point

if TYPE_CHECKING:
    from finetune_trainer.export import Lineage
    from finetune_trainer.results import EvaluationFile, Exchange

WIDTH, HEIGHT = 720.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 12.0, 12.0, 28.0
_TICKS = 4
_EXAMPLES = 20
"""Held-out answers on the page; evaluation.json has all of them."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve as SVG wants it."""

    name: str
    color: str
    points: str
    """Coordinates: "x,y x,y"."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """The loss curves."""

    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    bottom: float = HEIGHT - _BOTTOM


def report_page(lineage: Lineage, evaluation: EvaluationFile) -> str:
    """Return the page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("finetune_trainer").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    page: str = environment.from_string(source).render(
        job=lineage.config.job,
        scores=score_rows(lineage.summary),
        gates=gate_rows(lineage.summary),
        measure_warnings=lineage.summary.warnings,
        lineage=lineage_rows(lineage),
        training=training_rows(lineage),
        training_warnings=lineage.training.warnings,
        chart=_loss_chart(lineage),
        dataset=lineage.prepared.dataset,
        histogram=_bars(lineage.prepared.token_histogram),
        first_example=lineage.prepared.first_example,
        resolved=_resolved_rows(lineage),
        exchanges=[_shown(exchange) for exchange in (*evaluation.samples, *evaluation.examples[:_EXAMPLES])],
        samples=_by_prompt(lineage.samples),
        more=max(0, len(evaluation.examples) - _EXAMPLES),
    )
    return page


def draw(curves: Sequence[tuple[str, str, Sequence[Point]]]) -> Chart | None:
    """Return a chart of curves (name, color, points) on common axes; None without points."""
    points = [point for _, _, curve in curves for point in curve]
    if not points:
        return None
    last = max(point.step for point in points) or 1
    low, high = min(point.value for point in points), max(point.value for point in points)
    span = (high - low) or 1.0

    def x(step: float) -> float:
        return round(_LEFT + step / last * (WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(_TOP + (high - value) / span * (HEIGHT - _TOP - _BOTTOM), 1)

    return Chart(
        lines=tuple(
            Line(name, color, " ".join(f"{x(point.step)},{y(point.value)}" for point in curve))
            for name, color, curve in curves
            if curve
        ),
        x_ticks=tuple(Tick(x(step), f"{step:.0f}") for step in _evenly(0, last)),
        y_ticks=tuple(Tick(y(value), f"{value:.3g}") for value in _evenly(low, low + span)),
    )


def _loss_chart(lineage: Lineage) -> Chart | None:
    training, before = lineage.training, lineage.base.scores.loss
    held_out = training.held_out_losses
    if before is not None:
        held_out = (Point(step=0, value=before), *held_out)
    return draw([("training", "#7a869a", training.losses), ("held-out", "#d9480f", held_out)])


def _evenly(low: float, high: float) -> list[float]:
    return [low + (high - low) * index / _TICKS for index in range(_TICKS + 1)]


def _bars(histogram: dict[str, int]) -> list[tuple[str, int, float]]:
    """Return length bucket, count and share of the largest count, shortest first."""
    largest = max(histogram.values(), default=0) or 1
    ordered = sorted(histogram.items(), key=lambda item: int(item[0].split("-")[0].rstrip("+")))
    return [(bucket, count, round(100 * count / largest, 1)) for bucket, count in ordered]


def _resolved_rows(lineage: Lineage) -> list[tuple[str, str, str]]:
    """Return what was chosen, and why where the user did not."""
    wire = lineage.prepared.resolved.to_wire()
    because = lineage.prepared.resolved.because
    return [(name, str(value), because.get(name, "")) for name, value in wire.items() if name != "because"]


def _by_prompt(samples: Sequence[Sample]) -> list[tuple[str, list[Sample]]]:
    """Return each prompt with its answers, in the order of the steps."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(_text(sample.prompt), []).append(sample)
    return list(found.items())


def _text(prompt: str | list[dict[str, Any]]) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def _shown(exchange: Exchange) -> dict[str, str]:
    return {
        "prompt": _text(exchange.prompt),
        "expected": exchange.expected or "",
        "base": exchange.base or "",
        "tuned": exchange.tuned,
    }
