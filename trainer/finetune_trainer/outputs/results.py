"""Results in storage, as a later process finds them: complete by their manifest, or not there.

The train stage asks before it does anything, and the collect stage asks nothing else: nothing here loads torch.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from pydantic import ValidationError

from finetune_contract import paths
from finetune_contract.evaluation import EvaluationSummary, JudgeVerdict
from finetune_contract.exit_codes import ExitCode
from finetune_contract.model import Model
from finetune_contract.outcome import Manifest, OutputFile, TrainingSummary, TrainResult, Usage
from finetune_contract.run_config import RunConfig
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.outputs.summary import Training
from finetune_trainer.storage import Store


class Exchange(Model):
    """One prompt and what both models answered."""

    prompt: str | list[dict[str, Any]]
    expected: str | None = None
    base: str | None = None
    """Absent with compareWithBase: false."""
    tuned: str
    verdict: JudgeVerdict | None = None
    """The judge's."""


class EvaluationFile(EvaluationSummary):
    """evaluation.json: the summary, scores with all their digits, and what was said."""

    training: Training
    examples: tuple[Exchange, ...] = ()
    """Held-out questions, if a metric asked for answers."""
    samples: tuple[Exchange, ...] = ()
    """evaluation.samples.prompts."""


def completed_run(config: RunConfig, store: Store) -> tuple[TrainResult, str] | None:
    """Return the result of this run if its outputs are all there. Raises OUTPUT_EXISTS if another job's are."""
    try:
        manifest = Manifest.model_validate_json(store.read(paths.join(config.run_uri, paths.MANIFEST)))
    except NotFoundError:
        return None
    except ValidationError as error:
        raise _occupied(config, "its manifest cannot be read") from error
    if (manifest.job_uid, manifest.config_hash) != (config.job.uid, config.config_hash):
        raise _occupied(config, f"by {manifest.job_namespace}/{manifest.job_name}, run {manifest.run}")
    if wrong := not_as_listed(manifest.files, config, store):
        raise _occupied(config, f"its manifest lists {wrong}, which is not there or has another size")
    return read_result(config, store)


def read_result(config: RunConfig, store: Store) -> tuple[TrainResult, str]:
    """Return the result of a run that is complete, and its manifest's sha256."""
    content = store.read(paths.join(config.run_uri, paths.MANIFEST))
    report = EvaluationFile.model_validate_json(store.read(paths.join(config.run_uri, paths.EVALUATION)))
    return result_of(report.training, Manifest.model_validate_json(content)), sha256(content).hexdigest()


def result_of(training: Training, manifest: Manifest) -> TrainResult:
    """Return the train stage's result, as its termination message carries it."""
    tuned = manifest.evaluation.tuned.loss if manifest.evaluation else None
    return TrainResult(
        step=training.steps,
        loss=training.loss,
        # With preferences the tuned model's loss is that of the better answers, not of the objective.
        eval_loss=training.best_loss if training.held_out_margins else tuned,
        resumed_from_step=training.resumed_from_step,
        checkpoint_step=training.checkpoint_step,
        artifacts=manifest.artifacts,
        evaluation=manifest.evaluation,
        training=TrainingSummary(
            best_step=training.best_step, stopped_early=training.stopped_early, warnings=training.warnings
        ),
        warnings=manifest.warnings,
        usage=Usage(gpu_seconds=training.gpu_seconds, trained_tokens=training.trained_tokens),
    )


def not_as_listed(files: tuple[OutputFile, ...], config: RunConfig, store: Store) -> str | None:
    """Return the first file that is not in storage with its size."""
    sizes = {item.path: item.size for item in store.list(config.run_uri)}
    return next((file.path for file in files if sizes.get(file.path) != file.bytes), None)


def _occupied(config: RunConfig, why: str) -> TrainerError:
    return TrainerError(ExitCode.OUTPUT_EXISTS, f"output.uri: {config.run_uri} holds results already: {why}.")
