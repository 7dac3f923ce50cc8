"""report.html: one page without outside resources that shows what was trained on, how it went and what came out.

The curves are SVG drawn here (`charts.py`); the template escapes every value, since prompts and answers may hold
anything. No script, no font, no image: the page looks the same from a bucket, a mail or a disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from finetune_contract.evaluation import Verdict
from finetune_contract.measures import Measure
from finetune_contract.samples import Sample, turn_text
from finetune_trainer.outputs.card import gate_rows, lineage_rows, score_rows, training_rows, usage_rows
from finetune_trainer.outputs.charts import Chart, Curve, draw, histogram, smoothed
from finetune_trainer.outputs.summary import Point

if TYPE_CHECKING:
    from finetune_trainer.outputs.export import Lineage
    from finetune_trainer.outputs.results import EvaluationFile, Exchange

_EXAMPLES = 20
"""Held-out answers on the page; evaluation.json has all of them."""
_SMOOTH_FROM = 20
"""Points of a curve from which on an average is drawn over them."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure at the top of the page."""

    title: str
    value: str
    note: str = ""
    good: bool | None = None
    """Whether the note is good news; None where it is neither."""


def report_page(lineage: Lineage, evaluation: EvaluationFile, *, warnings: Sequence[str] = ()) -> str:
    """Return the page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("finetune_trainer.outputs").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    page: str = environment.from_string(source).render(
        job=lineage.config.job,
        spec=lineage.config.spec,
        tiles=_tiles(lineage),
        scores=score_rows(lineage.summary),
        gates=gate_rows(lineage.summary),
        measure_warnings=lineage.summary.warnings,
        lineage=lineage_rows(lineage),
        training=[*training_rows(lineage), *usage_rows(lineage.training)],
        chart=_loss_chart(lineage),
        dataset=lineage.prepared.dataset,
        warnings=[*warnings, *lineage.training.warnings, *lineage.prepared.dataset.warnings],
        histogram=histogram(lineage.prepared.token_histogram),
        labels=lineage.prepared.label_histogram,
        first_example=lineage.prepared.first_example,
        resolved=_resolved_rows(lineage),
        exchanges=[_shown(exchange) for exchange in (*evaluation.samples, *evaluation.examples[:_EXAMPLES])],
        samples=_by_prompt(lineage.samples),
        more=max(0, len(evaluation.examples) - _EXAMPLES),
    )
    return page


def _tiles(lineage: Lineage) -> list[Tile]:
    """Return what one wants to know first: is it better, and what has it cost?"""
    data, training, resolved = lineage.prepared.dataset, lineage.training, lineage.prepared.resolved
    examples = training.steps * resolved.batch_size
    tokens = examples * data.train_tokens / max(data.train_examples, 1)
    return [
        *_score_tiles(lineage),
        Tile(
            "Steps",
            f"{training.steps:,}",
            f"of {resolved.total_steps:,}" if training.steps < resolved.total_steps else "",
        ),
        Tile("Trained tokens", _short(tokens), f"{examples / max(data.train_examples, 1):.2g} passes over the data"),
        Tile("GPU memory", *_memory(lineage)),
    ]


def _score_tiles(lineage: Lineage) -> list[Tile]:
    before, after = lineage.base.scores, lineage.tuned.scores
    verdicts = {found.metric: found.verdict for found in lineage.summary.comparisons}
    tiles = []
    for title, base, tuned, measure in (
        ("Held-out loss", before.loss, after.loss, Measure.LOSS),
        ("Perplexity", before.perplexity, after.perplexity, Measure.LOSS),
        ("Exact match", before.exact_match, after.exact_match, Measure.EXACT_MATCH),
    ):
        if tuned is None:
            continue
        note = "" if base is None else f"from {base:.4g}"
        tiles.append(Tile(title, f"{tuned:.4g}", note, good=_GOOD.get(verdicts.get(measure))))
    return tiles


_GOOD: dict[Verdict | None, bool] = {Verdict.BETTER: True, Verdict.WORSE: False}
"""A difference is coloured only where it is one."""


def _memory(lineage: Lineage) -> tuple[str, str]:
    estimate = lineage.prepared.estimate
    note = f"of {estimate.gpu_bytes / 2**30:.0f} GiB, estimated" if estimate.gpu_bytes else "estimated peak"
    return f"{estimate.per_gpu_bytes / 2**30:.1f} GiB", note


def _short(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _loss_chart(lineage: Lineage) -> Chart | None:
    training, before = lineage.training, lineage.base.scores.loss
    held_out = training.held_out_losses
    if before is not None and not any(point.step == 0 for point in held_out):
        held_out = (Point(step=0, value=before), *held_out)
    curves = [Curve("training, each step", "raw", training.losses)]
    if len(training.losses) >= _SMOOTH_FROM:
        curves.append(Curve("training, averaged", "training", smoothed(training.losses)))
    curves.append(Curve("held-out", "held-out", held_out, dotted=True))
    return draw(curves, mark=training.best_step)


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
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return turn_text(prompt[0])
    return "\n".join(f"{turn['role']}: {turn_text(turn)}" for turn in prompt)


def _shown(exchange: Exchange) -> dict[str, str]:
    return {
        "prompt": _text(exchange.prompt),
        "expected": exchange.expected or "",
        "base": exchange.base or "",
        "tuned": exchange.tuned,
        "verdict": exchange.verdict or "",
    }
