"""The results of an earlier, identical run, if they are there and whole: `output.ifExists: Adopt`.

For a FineTuneJob that was deleted and created again, as a GitOps controller does once its time to live is over: that
is no reason to pay for the same run twice (job-traps 25). Only a job's first run adopts: a further one was asked for.
Identical is what has the same configuration hash. Every byte is held against the manifest before it counts.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from pydantic import ValidationError

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import Manifest, OutputFile, TrainResult
from finetune_contract.output_spec import IfExists
from finetune_contract.run_config import RunConfig
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.logs import log
from finetune_trainer.outputs.publish import pushed_before
from finetune_trainer.outputs.results import read_result
from finetune_trainer.storage import Store

_MANIFEST = re.compile(rf"run-([1-9][0-9]*)/{re.escape(paths.MANIFEST)}")


def adopted_run(config: RunConfig, store: Store, *, work: Path) -> tuple[TrainResult, str] | None:
    """Return the result of the newest run of another job with this configuration, and its manifest's sha256.

    None if there is none, or none is wanted. Raises OUTPUT_EXISTS if its files are not those of its manifest.
    """
    if config.spec.output.if_exists is not IfExists.ADOPT or config.job.run != 1:
        return None
    for run in _complete_runs(config, store):
        theirs = config.of_run(run)
        manifest = _read_manifest(theirs, store)
        if manifest and manifest.config_hash == config.config_hash and manifest.job_uid != config.job.uid:
            return _adopt(theirs, manifest, store, work=work)
    return None


def _complete_runs(config: RunConfig, store: Store) -> list[int]:
    found = (_MANIFEST.fullmatch(item.path) for item in store.list(config.spec.output.uri))
    return sorted((int(match[1]) for match in found if match), reverse=True)


def _read_manifest(theirs: RunConfig, store: Store) -> Manifest | None:
    try:
        return Manifest.model_validate_json(store.read(paths.join(theirs.run_uri, paths.MANIFEST)))
    except (NotFoundError, ValidationError):
        return None


def _adopt(theirs: RunConfig, manifest: Manifest, store: Store, *, work: Path) -> tuple[TrainResult, str]:
    whose = f"{manifest.job_namespace}/{manifest.job_name}"
    log.info("%s: results of %s with the same configuration; comparing them with its manifest", theirs.run_uri, whose)
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="adopt-") as scratch:
        wrong = next(
            (file.path for file in manifest.files if not _is_as_listed(file, theirs, store, Path(scratch))), None
        )
    if wrong:
        raise TrainerError(
            ExitCode.OUTPUT_EXISTS,
            f"{theirs.run_uri} holds results of a run with this configuration, but {wrong} is not as its manifest "
            "lists it: delete that folder, or choose another output.uri.",
        )
    result, sha256 = read_result(theirs, store)
    # What that run has used is counted already.
    adopted = {"adopted_run": theirs.job.run, "usage": None, "hub": pushed_before(theirs, store)}
    return result.model_copy(update=adopted), sha256


def _is_as_listed(file: OutputFile, theirs: RunConfig, store: Store, scratch: Path) -> bool:
    """Fetch one file at a time: the pod's disk need not hold all of them."""
    path = scratch / "file"
    try:
        digest, size = store.download(paths.join(theirs.run_uri, file.path), path), path.stat().st_size
    except NotFoundError:
        return False
    path.unlink()
    return (digest, size) == (file.sha256, file.bytes)
