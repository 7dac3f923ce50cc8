"""Where a run goes on from: its own newest checkpoint, that of another run, or the beginning.

A checkpoint of another run is only taken if what it holds means the same here: optimizer state belongs to the same
parameters, the position in the data to the same examples in the same order. What differs is named.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.prepared import Prepared
from finetune_contract.run_config import RunConfig
from finetune_contract.spec import Lora, Method, Quantization
from finetune_trainer.checkpoint import CheckpointManifest, committed_below, fetch_checkpoint, restore_newest
from finetune_trainer.distributed import world
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.logs import log
from finetune_trainer.storage import Store

LATEST, NOTHING = "Latest", "None"


@dataclass(frozen=True, slots=True)
class Restored:
    """A checkpoint that was fetched."""

    folder: Path
    step: int
    uri: str
    """Where it lies in storage."""


def restore(folder: Path, *, config: RunConfig, prepared: Prepared, store: Store) -> Restored | None:
    """Fetch what the run goes on from into a folder; None means the beginning. Raises CHECKPOINT_UNUSABLE.

    The first rank chooses for all, and each node fetches once.
    """
    chosen = world().from_first(lambda: _choose(folder, config=config, prepared=prepared, store=store))
    with world().one_a_node():
        if chosen and not folder.is_dir():
            _fetch_chosen(folder, chosen, store)
    return replace(chosen, folder=folder) if chosen else None


def _choose(folder: Path, *, config: RunConfig, prepared: Prepared, store: Store) -> Restored | None:
    source = config.spec.checkpoint.resume_from
    if source == NOTHING:
        return None
    if place := restore_newest(folder, config=config, store=store):
        log.info("going on from the checkpoint of attempt %d, step %d", place.attempt, place.step)
        return Restored(folder, place.step, place.uri(config))
    return None if source == LATEST else _restore_other(source, folder, config=config, prepared=prepared, store=store)


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
    if spec.method is Method.QLORA:
        found["quantization"] = json.dumps((spec.quantization or Quantization()).to_wire(), sort_keys=True)
    return found


def _restore_other(uri: str, folder: Path, *, config: RunConfig, prepared: Prepared, store: Store) -> Restored:
    for place in committed_below(uri, store):
        manifest = _manifest(place, store)
        _must_fit(place, manifest, config=config, prepared=prepared)
        problem = fetch_checkpoint(folder, place, manifest, store)
        if problem is None:
            log.info("going on from step %d of %s", manifest.step, place)
            return Restored(folder, manifest.step, place)
        log.warning("%s is not used: %s", place, problem)
        shutil.rmtree(folder, ignore_errors=True)
    raise _unusable(f"there is no undamaged checkpoint at {uri}")


def _fetch_chosen(folder: Path, chosen: Restored, store: Store) -> None:
    if problem := fetch_checkpoint(folder, chosen.uri, _manifest(chosen.uri, store), store):
        raise TrainerError(
            ExitCode.STORAGE_UNAVAILABLE, f"The checkpoint of step {chosen.step} differs between nodes: {problem}."
        )


def _manifest(place: str, store: Store) -> CheckpointManifest:
    try:
        return CheckpointManifest.model_validate_json(store.read(paths.join(place, paths.CHECKPOINT_MANIFEST)))
    except (NotFoundError, ValueError) as error:
        raise _unusable(f"the {paths.CHECKPOINT_MANIFEST} of {place} cannot be read") from error


def _must_fit(place: str, manifest: CheckpointManifest, *, config: RunConfig, prepared: Prepared) -> None:
    other = [name for name, value in identity(config, prepared).items() if manifest.identity.get(name) != value]
    if other:
        raise _unusable(f"{place} was trained with another {', '.join(other)}")
    if manifest.step >= prepared.resolved.total_steps:
        raise _unusable(
            f"{place} stands at step {manifest.step}, this run ends at {prepared.resolved.total_steps}: raise maxSteps"
        )


def _unusable(why: str) -> TrainerError:
    return TrainerError(ExitCode.CHECKPOINT_UNUSABLE, f"checkpoint.resumeFrom: {why}.")
