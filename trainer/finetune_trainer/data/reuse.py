"""What an earlier run of the job has prepared, for one whose data and tokenizer are the same.

A rerun, or a new run with another learning rate, does not read and tokenise a million examples again. The shards are
copied into the new run's folder, each held against its sha256: a run never needs another one's folder later.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune_contract import paths
from finetune_contract.prepared import Prepared
from finetune_contract.run_config import RunConfig
from finetune_trainer.data import record
from finetune_trainer.data.record import DataRecord
from finetune_trainer.errors import NotFoundError
from finetune_trainer.logs import log
from finetune_trainer.storage import Store

LOOKED_BACK = 5
"""Runs before this one that are asked."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a run of this job has prepared."""

    run_uri: str
    prepared: Prepared
    data: DataRecord


def find_earlier(config: RunConfig, store: Store, *, key: str) -> Earlier | None:
    """Return the newest earlier run of this job whose data became what this run's would become."""
    newest = config.job.run - 1
    for run in range(newest, max(newest - LOOKED_BACK, 0), -1):
        found = _read(paths.run_uri(config.spec.output.uri, run), store)
        if found and found.prepared.job_uid == config.job.uid and found.data.key == key:
            return found
    return None


def take_over(earlier: Earlier, store: Store, folder: Path) -> bool:
    """Fetch the earlier run's prepared files into a folder; tell whether all are there as they were stored."""
    expected = {shard.path: shard.sha256 for shard in earlier.prepared.shards}
    try:
        for path in (*expected, earlier.prepared.held_out):
            digest = store.download(paths.join(earlier.run_uri, path), folder / Path(path).name)
            if digest != expected.get(path, digest):
                log.warning("%s: %s has changed since; the data are prepared again", earlier.run_uri, path)
                return False
    except NotFoundError:
        return False
    log.info("data: the same as those of %s, whose %d shards are taken over", earlier.run_uri, len(expected))
    return True


def _read(run_uri: str, store: Store) -> Earlier | None:
    """Return None for a run that left nothing, or nothing that this version of the trainer understands."""
    try:
        prepared = Prepared.model_validate_json(store.read(paths.join(run_uri, paths.PREPARED)))
        data = DataRecord.model_validate_json(store.read(paths.join(run_uri, paths.PREPARED_DIR, record.NAME)))
    except (NotFoundError, ValueError):
        return None
    return Earlier(run_uri, prepared, data)
