"""`finetune run`: a manifest from file to verified outputs on this machine, and what a person reads when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_contract.exit_codes import ExitCode
from tests.support.models import tiny_llama
from tests.unit.rule_cases import job

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"Say {n} twice.", "completion": f"{n} {n}"} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def manifest(tmp_path: Path, model: Path, data: Path) -> Callable[..., Path]:
    def write(**hyperparameters: Any) -> Path:
        changes = {
            "spec.model.uri": model.as_uri(),
            "spec.dataset.uri": data.as_uri(),
            "spec.output.uri": (tmp_path / "out").as_uri(),
            "spec.hyperparameters": {"maxSteps": 4, "batchSize": 4, **hyperparameters},
            "spec.evaluation": {"metrics": ["exactMatch"], "maxNewTokens": 4},
            "spec.checkpoint": {"everySteps": 1},
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job(changes, name="local")))
        return path

    return write


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def finetune(environment: dict[str, str]) -> Run:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(_command(*arguments), env=environment, capture_output=True, text=True, check=False)

    return run


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "finetune_operator.cli", *map(str, arguments)]


def test_a_manifest_becomes_verified_outputs_that_a_second_run_finds_and_a_changed_one_leaves_alone(
    finetune: Run, manifest: Callable[..., Path], tmp_path: Path
) -> None:
    path = manifest()
    done = finetune("run", path)
    assert done.returncode == 0, done.stderr
    for part in ("40 examples", "4 steps of 4 examples", "held-out loss", "exact answers", "all as in the manifest"):
        assert part in done.stdout
    run = tmp_path / "out" / "run-1"
    assert f"adapter   {run.as_uri()}/adapter" in done.stdout
    assert (run / "adapter" / "adapter_model.safetensors").is_file()

    again = finetune("run", path)
    assert again.returncode == 0, again.stderr
    assert "this run is complete already" in again.stderr
    assert "run 1, attempt 2" in again.stdout

    assert finetune("run", manifest(maxSteps=2)).returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["run-1", "run-2"]

    assert finetune("verify", run.as_uri()).returncode == 0
    (run / "adapter" / "adapter_config.json").write_text("changed")
    spoilt = finetune("verify", run.as_uri())
    assert spoilt.returncode == 1
    assert "adapter/adapter_config.json: has 7 bytes, the manifest lists" in spoilt.stderr


def test_a_stopped_run_exits_as_preempted_and_goes_on_from_its_checkpoint(
    manifest: Callable[..., Path], environment: dict[str, str]
) -> None:
    command = _command("run", manifest(maxSteps=3000))
    code, log = _stopped(command, environment, once="checkpoint of step", by=signal.SIGINT)
    assert code == ExitCode.PREEMPTED
    assert "stopping at the next safe point" in log
    assert log.rstrip().endswith("goes on from the last checkpoint")
    assert "Traceback" not in log

    code, log = _stopped(command, environment, once="going on from the checkpoint", by=signal.SIGTERM)
    assert code == ExitCode.PREEMPTED
    assert "going on from the checkpoint of attempt 1, step" in log


def _stopped(command: list[str], environment: dict[str, str], *, once: str, by: signal.Signals) -> tuple[int, str]:
    """Run a command, send it a signal once its log says something; return its exit code and log."""
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        log = ""
        for line in process.stderr:
            log += line
            if once in line:
                process.send_signal(by)
                break
        log += process.stderr.read()
    return process.returncode, log


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        pytest.param(lambda data: data.unlink(), ExitCode.DATASET_NOT_FOUND, "dataset.uri", id="no-data"),
        pytest.param(lambda data: data.write_text(""), ExitCode.DATASET_TOO_SMALL, ".jsonl is empty", id="empty"),
        pytest.param(
            lambda data: data.write_text(data.read_text() + "{not json\n"), ExitCode.DATASET_INVALID, "41", id="line"
        ),
    ],
)
def test_bad_data_is_said_in_a_sentence_with_the_trainers_exit_code(  # noqa: PLR0917
    finetune: Run, manifest: Callable[..., Path], data: Path, spoil: Callable[[Path], object], code: int, said: str
) -> None:
    path = manifest()
    spoil(data)
    done = finetune("run", path)
    assert done.returncode == code
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("prepare: Dataset")
    assert said in last
    assert "Traceback" not in done.stderr


def test_a_bad_manifest_starts_nothing(finetune: Run, manifest: Callable[..., Path]) -> None:
    started = time.monotonic()
    done = finetune("run", manifest(batchSize=0))
    assert done.returncode == 2
    assert done.stderr.endswith("spec.hyperparameters.batchSize: must be at least 1 (is 0)\n")
    assert time.monotonic() - started < 5


def test_uris_of_a_clusters_job_give_way_to_local_paths(
    finetune: Run, tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job({"spec.hyperparameters.maxSteps": 1}, name="local")))
    monkeypatch.chdir(tmp_path)
    done = finetune("run", path, "--model", model, "--dataset", data.name, "--output", "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "run-1" / "manifest.json").is_file()


def test_claims_need_their_folder(finetune: Run, tmp_path: Path, model: Path, data: Path) -> None:
    changes = {"spec.model.uri": model.as_uri(), "spec.dataset.uri": f"pvc://work/{data.name}"}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job(changes, name="local")))

    refused = finetune("run", path)

    assert refused.returncode == 2
    assert "spec.dataset.uri: pvc:// needs --claims FOLDER" in refused.stderr
