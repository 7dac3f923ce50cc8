"""Whether a run can go on from the checkpoint of another: known before a GPU is asked for, and again before it is used.

It can if what the checkpoint holds means the same here: optimizer state belongs to the same parameters, the position in
the data to the same examples in the same order. What differs is named.
"""

from __future__ import annotations

import hashlib
import json

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.prepared import Prepared
from finetune_contract.run_config import RunConfig
from finetune_contract.spec import Lora, Method, Quantization
from finetune_trainer.checkpoints.checkpoint import CheckpointManifest, committed_below
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.storage import Store

LATEST, NOTHING = "Latest", "None"


def check_resume(config: RunConfig, prepared: Prepared, store: Store) -> None:
    """Raise CHECKPOINT_UNUSABLE where the newest checkpoint that the user named is not there or does not fit."""
    source = config.spec.checkpoint.resume_from
    if source in (LATEST, NOTHING):
        return
    newest = next(iter(committed_below(source, store)), None)
    if newest is None:
        raise none_at(source)
    must_fit(newest, manifest_of(newest, store), config=config, prepared=prepared)


def identity(config: RunConfig, prepared: Prepared) -> dict[str, str]:
    """Return what two runs must have in common to share checkpoints, by the spec's fields."""
    spec, resolved = config.spec, prepared.resolved
    found = {
        "model": resolved.model_revision or spec.model.uri,
        "method": str(spec.method),
        "objective": str(spec.objective),
        "dataset": hashlib.sha256("".join(shard.sha256 for shard in prepared.shards).encode()).hexdigest(),
        "hyperparameters.batchSize": str(resolved.batch_size),
        "hyperparameters.learningRate": f"{resolved.learning_rate:g}",
        "hyperparameters.optimizer": str(spec.hyperparameters.optimizer),
        "hyperparameters.weightDecay": f"{spec.hyperparameters.weight_decay:g}",
        "hyperparameters.seed": str(spec.hyperparameters.seed),
        # Any stage goes on from any other: whole tensors by name. Without ZeRO the optimizer's state is another file.
        "deepspeed": "ZeRO" if resolved.zero_stage else "none",
    }
    if spec.method is not Method.FULL:
        lora = (spec.lora or Lora()).model_copy(update={"alpha": resolved.lora_alpha})
        found["lora"] = json.dumps(lora.to_wire(), sort_keys=True)
    if spec.method is Method.QLORA or spec.in_fp8:
        found["quantization"] = json.dumps((spec.quantization or Quantization()).to_wire(), sort_keys=True)
    return found


def manifest_of(place: str, store: Store) -> CheckpointManifest:
    """Return what a committed checkpoint says of itself. Raises CHECKPOINT_UNUSABLE."""
    try:
        return CheckpointManifest.model_validate_json(store.read(paths.join(place, paths.CHECKPOINT_MANIFEST)))
    except (NotFoundError, ValueError) as error:
        raise unusable(f"the {paths.CHECKPOINT_MANIFEST} of {place} cannot be read") from error


def must_fit(place: str, manifest: CheckpointManifest, *, config: RunConfig, prepared: Prepared) -> None:
    """Raise CHECKPOINT_UNUSABLE, naming what differs, unless the run can go on from the checkpoint."""
    other = [name for name, value in identity(config, prepared).items() if manifest.identity.get(name) != value]
    if other:
        raise unusable(f"{place} was trained with another {', '.join(other)}")
    if manifest.step >= prepared.resolved.total_steps:
        raise unusable(
            f"{place} stands at step {manifest.step}, this run ends at {prepared.resolved.total_steps}: raise maxSteps"
        )


def unusable(why: str) -> TrainerError:
    """Return the error of a checkpoint that the user named."""
    return TrainerError(ExitCode.CHECKPOINT_UNUSABLE, f"checkpoint.resumeFrom: {why}.")


def none_at(uri: str) -> TrainerError:
    """Return the error of a place without a checkpoint."""
    return unusable(f"there is no undamaged checkpoint at {uri}")
