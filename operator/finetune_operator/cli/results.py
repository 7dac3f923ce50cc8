"""What a finished run shows on a terminal: base against tuned, answers before and after, where the outputs lie."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic.alias_generators import to_snake

from finetune_contract import paths
from finetune_contract.evaluation import EvaluationSummary, Verdict
from finetune_contract.measures import Measure
from finetune_contract.outcome import Manifest, TrainingSummary
from finetune_contract.samples import turn_text
from finetune_operator.cli.storage import StorageError, read
from finetune_operator.cli.verify import human_bytes

_VERDICTS = {
    Verdict.BETTER: "better",
    Verdict.WORSE: "worse",
    Verdict.NO_CLEAR_DIFFERENCE: "no clear difference",
}
_FIELDS = {Measure.FORGETTING: "general_perplexity"}
_WIDTH, _INDENT, _LINES = 100, 10, 3
_ROWS = (
    ("loss", "held-out loss", "{:.4f}"),
    ("perplexity", "perplexity", "{:.2f}"),
    ("exact_match", "exact answers", "{:.0%}"),
    ("regex", "pattern found", "{:.0%}"),
    ("json_valid", "valid JSON", "{:.0%}"),
    ("json_schema", "fits the JSON Schema", "{:.0%}"),
    ("rouge", "ROUGE-L", "{:.3f}"),
    ("general_perplexity", "general perplexity", "{:.2f}"),
    ("judge", "preferred by the judge", "{:.0%}"),
)


def comparison(evaluation: EvaluationSummary) -> Iterator[str]:
    """Yield the table of base against tuned."""
    verdicts = {
        _FIELDS.get(found.metric, to_snake(found.metric)): _VERDICTS[found.verdict] for found in evaluation.comparisons
    }
    yield f"{'on the held-out part':<22}{'base':>10}{'tuned':>10}"
    for field, title, form in _ROWS:
        base, tuned = getattr(evaluation.base, field), getattr(evaluation.tuned, field)
        if tuned is not None:
            verdict = f"  {verdicts[field]}" if field in verdicts else ""
            yield f"{title:<22}{form.format(base) if base is not None else '-':>10}{form.format(tuned):>10}{verdict}"
    for warning in evaluation.warnings:
        yield f"warning: {warning}"


def remarks(training: TrainingSummary | None) -> Iterator[str]:
    """Yield what is to say about the training: why it ended early, and what to change; each a paragraph."""
    found = [training.stopped_early, *training.warnings] if training else []
    for text in found:
        if text:
            yield f"{labelled('note', text)}\n"


def before_and_after(run_uri: str, *, most: int = 3) -> Iterator[str]:
    """Yield prompts of the held-out part, and the samples that the spec asks for, with both models' answers."""
    try:
        found = json.loads(read(paths.join(run_uri, paths.EVALUATION)))
    except (StorageError, ValueError):
        return
    for exchange in [*found.get("samples", []), *found.get("examples", [])[:most]]:
        yield from _exchange(exchange)


def _exchange(exchange: dict[str, Any]) -> Iterator[str]:
    prompt = exchange["prompt"]
    yield labelled("prompt", prompt if isinstance(prompt, str) else turn_text(prompt[-1]))
    if exchange.get("expected"):
        yield labelled("expected", exchange["expected"])
    if "base" in exchange:
        yield labelled("base", exchange["base"])
    yield labelled("tuned", exchange["tuned"])
    yield ""


def labelled(label: str, text: str) -> str:
    """Return a label with a text beside it, wrapped; a long one is cut."""
    lines = textwrap.wrap(text, _WIDTH - _INDENT, max_lines=_LINES, placeholder=" …") or ["(nothing)"]
    return f"{label:<{_INDENT}}" + f"\n{'':<{_INDENT}}".join(lines)


def outputs(run_uri: str, manifest: Manifest) -> Iterator[str]:
    """Yield each kind of output with its place and size."""
    for name, found in manifest.artifacts.items():
        yield f"{name:<10}{paths.join(run_uri, found.path)}  ({human_bytes(found.bytes)})"
    listed = {file.path for file in manifest.files}
    for name, path in (("report", paths.REPORT), ("card", paths.MODEL_CARD)):
        if path in listed:
            yield f"{name:<10}{paths.join(run_uri, path)}"
    yield f"{'manifest':<10}{paths.join(run_uri, paths.MANIFEST)}"
