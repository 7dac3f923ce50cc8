"""`finetune validate --data`: the data of a job, read and checked on this machine as the prepare Job would."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune_contract import paths
from finetune_contract.outcome import TerminationMessage
from finetune_contract.prepared import DatasetCounts
from finetune_contract.run_config import JobIdentity, RunConfig
from finetune_contract.spec import TuningSpec
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.cli.stages import run_stage


def check_data(job: dict[str, Any], *, claims: Path | None) -> tuple[list[str], str]:
    """Read the data of a valid job; return lines about it, and what is wrong with it ("" if it can be used)."""
    full = FineTuneJobSpec.model_validate(job["spec"])
    if not find_spec("numpy"):
        return [], "the trainer is not installed here: pip install 'finetune-operator[trainer]'"
    if not claims and any(uri.startswith("pvc://") for uri in full.dataset.uris):
        return [], "spec.dataset: pvc:// needs --claims FOLDER, in which the claim is a folder of its name"
    spec = TuningSpec(**{name: getattr(full, name) for name in TuningSpec.model_fields})
    metadata = job["metadata"]
    identity = JobIdentity(name=metadata.get("name") or metadata["generateName"], namespace="local", uid="")
    said = _run(RunConfig(job=identity, spec=spec, config_hash=""), claims)
    if said.exit_code:
        return [], f"{said.reason}: {said.message}"
    return list(_lines(said.checked)) if said.checked else [], ""


def _run(config: RunConfig, claims: Path | None) -> TerminationMessage:
    with tempfile.TemporaryDirectory(prefix="finetune-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
        environment = {
            **os.environ,
            paths.ENV_CONFIG: str(folder / "config.json"),
            paths.ENV_TERMINATION_LOG: str(folder / "message"),
            paths.ENV_WORK: str(folder),
            **({paths.ENV_CLAIMS: str(claims.absolute())} if claims else {}),
        }
        return run_stage("check", environment=environment, message_file=folder / "message", log_level="CRITICAL")


def _lines(data: DatasetCounts) -> Iterator[str]:
    yield (
        f"data: {data.examples} examples ({data.format}), {data.train_examples} to train on and "
        f"{data.validation_examples} held out; {data.duplicates} duplicates, {data.near_duplicates} near duplicates, "
        f"{data.leaked} leaked, {data.damaged} damaged"
    )
    for warning in data.warnings:
        yield f"warning: {warning}"
