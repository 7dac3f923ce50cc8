"""The model card: README.md in the form that model hubs read, with where the model comes from and how good it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic.alias_generators import to_snake

from finetune_contract.evaluation import Comparison, EvaluationSummary, Verdict
from finetune_contract.measures import Measure
from finetune_contract.spec import Lora, Method, Optimizer

if TYPE_CHECKING:
    from finetune_trainer.outputs.export import Lineage
    from finetune_trainer.outputs.summary import Training

_LICENCE = ("license", "license_name", "license_link")
_SCORES = (
    ("loss", "Held-out loss"),
    ("perplexity", "Perplexity"),
    ("exact_match", "Exact match"),
    ("regex", "Regular expression found"),
    ("json_valid", "Valid JSON"),
    ("json_schema", "Fits the JSON Schema"),
    ("rouge", "ROUGE-L"),
    ("general_perplexity", "Perplexity on general text"),
    ("judge", "Preferred by the judge"),
)


def model_card(lineage: Lineage, *, licence: dict[str, str] | None = None, warnings: Sequence[str] = ()) -> str:
    """Return the card as Markdown; `licence` is what the base's own card says of its licence."""
    config = lineage.config
    parts = [
        _front_matter(lineage, licence or {}),
        f"# {config.job.name}",
        f"{_model(lineage)} tuned with {config.spec.method} on `{config.spec.dataset.origin}`.",
        "## Use",
        _use(lineage),
        "## Held-out results",
        _results(lineage),
    ]
    if known := [*lineage.training.warnings, *lineage.prepared.dataset.warnings, *warnings]:
        parts += ["## Known limits", "\n".join(f"- {' '.join(warning.split())}" for warning in known)]
    parts += [
        "## Licence",
        _licence(licence or {}),
        "## Lineage",
        _lineage(lineage),
        "## Training",
        _training(lineage),
        "`config.yaml` has every setting and repeats the run; `manifest.json` has every file's sha256.",
    ]
    return "\n\n".join(parts) + "\n"


def licence_of(folder: Path) -> dict[str, str]:
    """Return license, license_name and license_link of a model folder's card, as far as it says them."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        # Text is all that is wanted of what a stranger wrote: no tags, and no merges that grow with each level.
        front = yaml.load(text.split("---", 2)[1], yaml.BaseLoader) if text.startswith("---") else {}  # noqa: S506
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    said = front if isinstance(front, dict) else {}
    return {name: value for name in _LICENCE if isinstance(value := said.get(name), str)}


def score_rows(summary: EvaluationSummary) -> list[tuple[str, str, str, str]]:
    """Return what was measured: name, base, tuned, and the difference with its 95 % interval."""
    changes = {_FIELDS.get(found.metric, to_snake(found.metric)): _change(found) for found in summary.comparisons}
    return [
        (title, "" if before is None else f"{before:.4g}", f"{after:.4g}", changes.get(field, ""))
        for field, title in _SCORES
        for before, after in [(getattr(summary.base, field), getattr(summary.tuned, field))]
        if after is not None
    ]


def gate_rows(summary: EvaluationSummary) -> list[tuple[str, str, str, str]]:
    """Return the gates: measure, bound, value, and whether it was passed."""
    return [
        (
            f"{gate.metric}{' against base' if gate.relative_to else ''}",
            " and ".join(
                f"{word} {bound:g}" for word, bound in (("min", gate.min), ("max", gate.max)) if bound is not None
            ),
            "not measured" if gate.value is None else f"{gate.value:.4g}",
            "passed" if gate.passed else "FAILED",
        )
        for gate in summary.gates
    ]


_FIELDS = {Measure.FORGETTING: "general_perplexity"}


def _change(found: Comparison) -> str:
    if found.metric is Measure.FORGETTING:
        return f"ratio {found.change:.4g} [{found.low:.4g}, {found.high:.4g}], {_VERDICTS[found.verdict]}"
    return f"{found.change:+.3g} [{found.low:+.3g}, {found.high:+.3g}], {_VERDICTS[found.verdict]}"


_VERDICTS = {
    Verdict.BETTER: "better",
    Verdict.WORSE: "worse",
    Verdict.NO_CLEAR_DIFFERENCE: "no clear difference",
}


def lineage_rows(lineage: Lineage) -> list[tuple[str, str]]:
    """Return where the model comes from, name by name."""
    config, resolved = lineage.config, lineage.prepared.resolved
    rows = [
        ("Job", f"{config.job.namespace}/{config.job.name}, run {config.job.run}"),
        ("Configuration", f"sha256 {config.config_hash}"),
        ("Base model", config.spec.model.uri),
        ("Base revision", lineage.revision or ""),
        ("Data", config.spec.dataset.origin),
        ("Data sha256", resolved.dataset_sha256 or ""),
        ("Prepared data", f"sha256 {config.prepared_sha256}" if config.prepared_sha256 else ""),
        ("Merged into", lineage.merged_from or ""),
    ]
    return [(name, value) for name, value in rows if value]


def training_rows(lineage: Lineage) -> list[tuple[str, str]]:
    """Return how the model was trained, name by name."""
    resolved, wanted, training = lineage.prepared.resolved, lineage.config.spec.hyperparameters, lineage.training
    rows = [
        ("Method", str(lineage.config.spec.method)),
        ("Steps", f"{training.steps}, weights of step {training.best_step or training.steps}"),
        ("Batch", f"{resolved.batch_size} examples, {training.micro_batch_size or resolved.micro_batch_size} a pass"),
        ("Activations", "recomputed" if training.gradient_checkpointing else "kept"),
        ("Steps computed by", training.computed_by or "transformers and PEFT"),
        ("Learning rate", f"{resolved.learning_rate:g}, {wanted.scheduler}, warm-up {wanted.warmup_ratio:g}"),
        ("Longest sequence", f"{resolved.max_sequence_length} tokens"),
        ("Loss on", str(resolved.loss)),
        ("Precision", str(resolved.precision)),
        ("Trained tokens", f"{training.trained_tokens or 0:,}"),
        ("Seed", str(wanted.seed)),
    ]
    if training.frozen_base:
        rows.append(("Frozen base model", training.frozen_base))
    if training.stopped_early:
        rows.append(("Stopped early", training.stopped_early))
    if resolved.beta is not None:
        rows.insert(1, ("Objective", f"{lineage.config.spec.objective}, beta {resolved.beta:g}"))
        rows += _preference_rows(training)
    if lineage.config.spec.method is not Method.FULL and resolved.lora_alpha is not None:
        rows.insert(1, ("LoRA", _adapter_row(lineage.config.spec.lora or Lora(), resolved.lora_alpha)))
    if wanted.optimizer is not Optimizer.ADAMW:
        rows.append(("Optimizer", str(wanted.optimizer)))
    return rows


def _adapter_row(lora: Lora, alpha: float) -> str:
    parts = [f"alpha {alpha:g}", f"rank {lora.rank}"]
    parts += [name for name, used in (("rsLoRA", lora.rslora), ("DoRA", lora.dora)) if used]
    parts += [lora.initialization] if lora.initialization != "default" else []
    parts += [f"rate of B x {lora.lora_plus_ratio:g}"] if lora.lora_plus_ratio else []
    parts += [f"{', '.join(lora.modules_to_save)} trained whole"] if lora.modules_to_save else []
    return ", ".join(parts)


def _preference_rows(training: Training) -> list[tuple[str, str]]:
    """Return how often and by how much the better of two held-out answers is preferred, at the exported step."""
    step = training.best_step or training.steps
    measured = zip(training.held_out_accuracies, training.held_out_margins, strict=True)
    return [
        ("Better answer preferred", f"{accuracy.value:.1%} of the held-out pairs, margin {margin.value:.3g}")
        for accuracy, margin in measured
        if accuracy.step == step
    ]


def usage_rows(training: Training) -> list[tuple[str, str]]:
    """Return how fast it was and what it cost: for the report, since a model card does not depend on the machine."""
    speed, mfu, seconds = training.tokens_per_second, training.mfu, training.gpu_seconds
    rows = [
        ("Speed", f"{speed:,.0f} tokens/s" + (f", {mfu:.1%} MFU" if mfu else "") if speed else ""),
        ("GPU time", f"{seconds:,.0f} s" if seconds else ""),
    ]
    return [(name, value) for name, value in rows if value]


def _front_matter(lineage: Lineage, licence: dict[str, str]) -> str:
    uri, method = lineage.config.spec.model.uri, lineage.config.spec.method
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    if uri.startswith("hf://"):
        # JSON strings are YAML strings, whatever they hold.
        lines.append(f"base_model: {json.dumps(uri.removeprefix('hf://'))}")
    lines += [f"{name}: {json.dumps(value)}" for name, value in licence.items()]
    lines += ["tags:", "- finetuned", f"- {method.lower()}"]
    return "\n".join(["---", *lines, "---"])


def _use(lineage: Lineage) -> str:
    """Say how what lies beside the card is loaded."""
    spec = lineage.config.spec
    base = spec.model.uri.removeprefix("hf://")
    ways = []
    if spec.output.merged.enabled or spec.method is Method.FULL:
        place = spec.output.hub.repo if spec.output.hub else "merged"
        ways.append(
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{place}")\n'
            f'model = AutoModelForCausalLM.from_pretrained("{place}", dtype="auto")\n```'
        )
    if spec.method is not Method.FULL:
        ways.append(
            f'The adapter alone, on `{base}`: `PeftModel.from_pretrained(base, "adapter")`, or '
            f"`vllm serve {base} --enable-lora --lora-modules {lineage.config.job.name}=adapter`."
        )
    if spec.output.gguf:
        ways.append(f"With Ollama, in `gguf/`: `ollama create {lineage.config.job.name} -f Modelfile`.")
    return "\n\n".join(ways)


def _licence(licence: dict[str, str]) -> str:
    if not licence:
        return "The base model's card says nothing of its licence. Whatever it is, it holds for these weights too."
    named = licence.get("license_name") or licence.get("license", "")
    link = f" ({licence['license_link']})" if "license_link" in licence else ""
    return f"The base model's: {named}{link}. It holds for these weights, too; that of the data may as well."


def _model(lineage: Lineage) -> str:
    return f"`{lineage.config.spec.model.uri}`"


def _results(lineage: Lineage) -> str:
    header = f"On {lineage.prepared.dataset.validation_examples} examples that were not trained on.\n\n"
    scores = _table(("", "Base", "Tuned", "Difference [95 % interval]"), score_rows(lineage.summary))
    gates = gate_rows(lineage.summary)
    warnings = "".join(f"\n\n{warning}" for warning in lineage.summary.warnings)
    return header + scores + warnings + ("\n\n" + _table(("Gate", "Bound", "Value", ""), gates) if gates else "")


def _lineage(lineage: Lineage) -> str:
    from finetune_trainer.outputs.export import versions

    rows = [*lineage_rows(lineage), ("Software", ", ".join(f"{k} {v}" for k, v in versions().items()))]
    return _table(("", ""), rows)


def _training(lineage: Lineage) -> str:
    return _table(("", ""), training_rows(lineage))


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(header), line(("---",) * len(header)), *(line(row) for row in rows)])
