"""Where a run goes on from: its own newest checkpoint, that of another run, or the beginning.

A checkpoint of another run is only taken if what it holds means the same here (`resume_check`).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_contract.exit_codes import ExitCode
from finetune_contract.prepared import Prepared
from finetune_contract.run_config import RunConfig
from finetune_trainer.checkpoints.checkpoint import committed_below, fetch_checkpoint, restore_newest
from finetune_trainer.checkpoints.resume_check import LATEST, NOTHING, manifest_of, must_fit, none_at
from finetune_trainer.errors import TrainerError
from finetune_trainer.logs import log
from finetune_trainer.parallel.distributed import world
from finetune_trainer.storage import Store


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


def _restore_other(uri: str, folder: Path, *, config: RunConfig, prepared: Prepared, store: Store) -> Restored:
    for place in committed_below(uri, store):
        manifest = manifest_of(place, store)
        must_fit(place, manifest, config=config, prepared=prepared)
        problem = fetch_checkpoint(folder, place, manifest, store)
        if problem is None:
            log.info("going on from step %d of %s", manifest.step, place)
            return Restored(folder, manifest.step, place)
        log.warning("%s is not used: %s", place, problem)
        shutil.rmtree(folder, ignore_errors=True)
    raise none_at(uri)


def _fetch_chosen(folder: Path, chosen: Restored, store: Store) -> None:
    if problem := fetch_checkpoint(folder, chosen.uri, manifest_of(chosen.uri, store), store):
        raise TrainerError(
            ExitCode.STORAGE_UNAVAILABLE, f"The checkpoint of step {chosen.step} differs between nodes: {problem}."
        )
