"""The results: written to a local folder, uploaded, checked, and made valid by the manifest, which comes last.

Everything but the manifest can be written again by another attempt: the weights are then the same bytes, since nothing
in them depends on the time or the machine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from finetune_contract import paths
from finetune_contract.evaluation import EvaluationSummary, JudgeVerdict
from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import Manifest, OutputFile, TrainResult, artifact
from finetune_contract.output_spec import Gguf, MergedBase
from finetune_contract.prepared import Prepared
from finetune_contract.run_config import RunConfig
from finetune_contract.samples import Sample, to_lines
from finetune_contract.spec import Method, Quantization
from finetune_trainer.data.dataset import Question
from finetune_trainer.errors import AlreadyExistsError, TrainerError
from finetune_trainer.evaluation.measured import Measured
from finetune_trainer.logs import log
from finetune_trainer.model.folder import read_config, stop_ids
from finetune_trainer.model.vocabulary import ids_of
from finetune_trainer.outputs.results import EvaluationFile, Exchange, completed_run, not_as_listed, result_of
from finetune_trainer.outputs.summary import Training
from finetune_trainer.storage import Store
from finetune_trainer.storage.folders import upload_folder

MERGED_FROM = "the model's own weights, in float32"
MERGED_FROM_DEQUANTIZED = "the 4-bit base of the training, dequantised, in float32"
TRACKING = "tracking"
"""Folder of what trackers write to files, each in a folder that is among the outputs."""
_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "gguf", "finetune-operator")


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where the results come from and how good they are."""

    config: RunConfig
    prepared: Prepared
    revision: str | None
    training: Training
    base: Measured
    tuned: Measured
    summary: EvaluationSummary
    """Base against tuned."""
    questions: tuple[Question, ...]
    samples: tuple[Sample, ...] = ()
    """Answers while the model was trained."""
    verdicts: tuple[JudgeVerdict | None, ...] = ()
    """The judge's, on the first questions."""

    @property
    def merged_from(self) -> str | None:
        """What the adapter is merged into, if there is one and it is."""
        spec = self.config.spec
        if spec.method is Method.FULL or not spec.output.merged.enabled:
            return None
        return MERGED_FROM_DEQUANTIZED if self.dequantized else MERGED_FROM

    @property
    def dequantized(self) -> Quantization | None:
        """How the base was quantised, if the adapter is merged into that."""
        spec = self.config.spec
        original = spec.method is not Method.QLORA or spec.output.merged.base is MergedBase.ORIGINAL
        return None if original else spec.quantization or Quantization()


def export(
    weights: Path, tokenizer: Any, lineage: Lineage, *, base_folder: Path, folder: Path, store: Store
) -> tuple[TrainResult, str]:
    """Write, upload and commit all results; return the train stage's result and the manifest's sha256."""
    outputs = folder / "outputs"
    warnings = write_outputs(weights, tokenizer, lineage, base_folder=base_folder, into=outputs)
    if (folder / TRACKING).is_dir():
        # W&B links its newest run and log: the same files once more.
        shutil.copytree(folder / TRACKING, outputs, dirs_exist_ok=True, ignore=_links)
    files = upload_folder(store, outputs, lineage.config.run_uri)
    if wrong := not_as_listed(tuple(files), lineage.config, store):
        raise TrainerError(ExitCode.STORAGE_UNAVAILABLE, f"{wrong} has another size in storage than was uploaded.")
    return _commit(manifest_of(files, lineage, warnings=warnings), lineage, store)


def _links(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_symlink()]


def write_outputs(weights: Path, tokenizer: Any, lineage: Lineage, *, base_folder: Path, into: Path) -> list[str]:
    """Write all results but the manifest to a local folder; return what could not be done as asked."""
    from finetune_trainer.outputs.card import licence_of, model_card
    from finetune_trainer.outputs.repeat import repeating_job
    from finetune_trainer.outputs.report import report_page

    shutil.rmtree(into, ignore_errors=True)
    warnings = _write_weights(weights, tokenizer, lineage, base_folder=base_folder, into=into)
    evaluation = evaluation_file(lineage)
    _write_text(into / paths.EVALUATION, json.dumps(evaluation.to_wire(), indent=2, ensure_ascii=False) + "\n")
    if lineage.samples:
        _write_text(into / paths.SAMPLES, to_lines(lineage.samples))
    _write_text(into / paths.MODEL_CARD, model_card(lineage, licence=licence_of(base_folder), warnings=warnings))
    _write_text(into / paths.REPEAT, repeating_job(lineage))
    _write_text(into / paths.REPORT, report_page(lineage, evaluation, warnings=warnings))
    return warnings


def _write_weights(weights: Path, tokenizer: Any, lineage: Lineage, *, base_folder: Path, into: Path) -> list[str]:
    """Write adapter, merged weights and GGUF as far as they are asked for; every model folder has its tokenizer."""
    spec = lineage.config.spec
    with_adapter, keep_merged = spec.method is not Method.FULL, spec.output.merged.enabled
    if with_adapter:
        _write_adapter(weights, into / paths.ADAPTER, lineage)
        tokenizer.save_pretrained(into / paths.ADAPTER)
    if with_adapter and not keep_merged and not spec.output.gguf:
        return []
    # GGUF is made from merged weights, whether they are kept or not.
    merged = into / paths.MERGED if keep_merged or not with_adapter else into.with_name("merged")
    shutil.rmtree(merged, ignore_errors=True)
    new_tokens = ids_of(tokenizer, spec.model.new_tokens)
    _write_merged(
        weights, into / paths.ADAPTER, merged, lineage=lineage, base_folder=base_folder, new_tokens=new_tokens
    )
    tokenizer.save_pretrained(merged)
    if (sentencepiece := base_folder / "tokenizer.model").is_file():
        shutil.copy(sentencepiece, merged)  # transformers leaves it out, and llama.cpp reads it
    return _write_gguf(merged, into / paths.GGUF, tokenizer, lineage) if spec.output.gguf else []


def _write_merged(
    weights: Path, adapter: Path, into: Path, *, lineage: Lineage, base_folder: Path, new_tokens: Sequence[int]
) -> None:
    from finetune_trainer.model.build import compute_dtype
    from finetune_trainer.outputs.merge import write_full, write_merged

    settings = lineage.config.spec.output.merged
    if lineage.config.spec.method is Method.FULL:
        write_full(weights, into, settings=settings)
        return
    write_merged(
        base_folder,
        adapter,
        into,
        settings=settings,
        quantization=lineage.dequantized,
        trained_in=compute_dtype(lineage.prepared.resolved.precision),
        new_tokens=new_tokens,
    )


def _write_gguf(merged: Path, into: Path, tokenizer: Any, lineage: Lineage) -> list[str]:
    from finetune_trainer.outputs.gguf_files import write_gguf

    wanted = lineage.config.spec.output.gguf or Gguf()
    stops = sorted(stop_ids(merged, read_config(merged)))
    return write_gguf(
        merged, into, types=wanted.types, name=lineage.config.job.name, tokenizer=tokenizer, stop_ids=stops
    )


def evaluation_file(lineage: Lineage) -> EvaluationFile:
    """Return evaluation.json: scores, and every prompt with both answers."""
    prompts = lineage.config.spec.evaluation.samples.prompts
    base, tuned = lineage.base, lineage.tuned
    return EvaluationFile(
        base=base.scores,
        tuned=tuned.scores,
        comparisons=lineage.summary.comparisons,
        gates=lineage.summary.gates,
        judge=lineage.summary.judge,
        warnings=lineage.summary.warnings,
        training=lineage.training,
        examples=tuple(
            Exchange(prompt=question.prompt, expected=question.answer, base=before, tuned=after, verdict=verdict)
            for (question, before, after), verdict in zip_longest(
                _side_by_side(lineage.questions, base.answers, tuned.answers), lineage.verdicts
            )
        ),
        samples=tuple(
            Exchange(prompt=prompt, base=before, tuned=after)
            for prompt, before, after in _side_by_side(prompts, base.samples, tuned.samples)
        ),
    )


def _side_by_side(asked: Sequence[T], base: Sequence[str], tuned: Sequence[str]) -> Iterator[tuple[T, str | None, str]]:
    """Yield prompt, the base's answer if it was asked, and the tuned model's."""
    for index, (prompt, after) in enumerate(zip(asked, tuned, strict=False)):
        yield prompt, base[index] if index < len(base) else None, after


def manifest_of(files: list[OutputFile], lineage: Lineage, *, warnings: Sequence[str] = ()) -> Manifest:
    """Return the manifest of these files."""
    config = lineage.config
    folders = {
        name: inside
        for name in (paths.ADAPTER, paths.MERGED, paths.GGUF)
        if (inside := [file for file in files if file.path.startswith(f"{name}/")])
    }
    return Manifest(
        job_name=config.job.name,
        job_namespace=config.job.namespace,
        job_uid=config.job.uid,
        run=config.job.run,
        config_hash=config.config_hash,
        method=config.spec.method,
        objective=config.spec.objective,
        base_model=config.spec.model.uri,
        base_revision=lineage.revision,
        dataset=config.spec.dataset.origin,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files=tuple(sorted(files, key=lambda file: file.path)),
        artifacts={name: artifact(name, inside) for name, inside in folders.items()},
        merged_from=lineage.merged_from,
        evaluation=lineage.summary,
        gates_passed=not lineage.summary.failed_gates if lineage.summary.gates else None,
        versions=versions(),
        warnings=tuple(warnings),
    )


def versions() -> dict[str, str]:
    """Return the versions of what the result depends on, as far as it is installed."""
    found = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _write_adapter(weights: Path, into: Path, lineage: Lineage) -> None:
    """Copy the adapter; its configuration names the base model as the user knows it, not this machine's folder."""
    shutil.copytree(weights, into)
    path = into / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["base_model_name_or_path"] = lineage.config.spec.model.uri.removeprefix("hf://")
    settings["revision"] = lineage.revision
    # PEFT writes a set, in another order at every run.
    if isinstance(settings["target_modules"], list):
        settings["target_modules"].sort()
    _write_text(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _commit(manifest: Manifest, lineage: Lineage, store: Store) -> tuple[TrainResult, str]:
    content = manifest.to_json().encode()
    try:
        store.write(paths.join(lineage.config.run_uri, paths.MANIFEST), content, only_if_absent=True)
    except AlreadyExistsError:
        log.warning("another attempt has written the manifest first")
        if (done := completed_run(lineage.config, store)) is not None:
            return done
        raise
    return result_of(lineage.training, manifest), sha256(content).hexdigest()


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
