"""`finetune run` without a trainer: who a job is, which attempt this is, what it is told to take, how a stage ended."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import TerminationMessage, TrainResult
from finetune_contract.run_config import Device
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.cli import local_run, run, stages
from finetune_operator.cli.__main__ import COMMANDS, main
from finetune_operator.cli.local_run import LocalRun
from tests.unit.rule_cases import job


def _local(tmp_path: Path, changes: dict[str, Any] | None = None) -> LocalRun:
    return LocalRun(name="bot", spec=job(changes)["spec"], folder=tmp_path / "work", claims=None)


def test_the_same_manifest_is_the_next_attempt_of_the_same_run(tmp_path: Path) -> None:
    first, second = (_local(tmp_path).config(Device()) for _ in range(2))
    assert (first.job.run, first.job.attempt) == (1, 1)
    assert (second.job.run, second.job.attempt) == (1, 2)
    assert (first.job.uid, first.config_hash) == (second.job.uid, second.config_hash)


def test_a_changed_manifest_is_the_next_run(tmp_path: Path) -> None:
    _local(tmp_path).config(Device())
    changed = _local(tmp_path, {"spec.lora.rank": 8}).config(Device())
    assert (changed.job.run, changed.job.attempt) == (2, 1)


def test_what_may_change_in_a_cluster_is_no_change_here(tmp_path: Path) -> None:
    _local(tmp_path).config(Device())
    again = _local(tmp_path, {"spec.lifecycle.gracePeriodSeconds": 10}).config(Device())
    assert (again.job.run, again.job.attempt) == (1, 2)


def test_another_output_is_another_job(tmp_path: Path) -> None:
    assert _local(tmp_path).uid != _local(tmp_path, {"spec.output.uri": "s3://models/other"}).uid


def test_a_damaged_state_begins_anew(tmp_path: Path) -> None:
    local = _local(tmp_path)
    local.config(Device())
    (local.folder / "state.json").write_text("{")
    assert local.config(Device()).job.attempt == 1


def test_the_stages_see_the_users_environment_and_our_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store")
    local = _local(tmp_path)
    environment = local.environment(tmp_path / "config.json", tmp_path / "message")
    assert environment["AWS_ENDPOINT_URL"] == "http://store"
    assert environment["FINETUNE_CONFIG"] == str(tmp_path / "config.json")
    assert environment["FINETUNE_WORK"].startswith(str(local.folder))


@pytest.mark.parametrize(
    ("asked", "memory", "device", "noted"),
    [
        pytest.param({"gpusPerNode": 0}, [80], Device(), False, id="none-asked"),
        pytest.param({}, [], Device(), True, id="none-here"),
        pytest.param({}, [80, 80], Device(gpus=1, gpu_memory_bytes=80 << 30), False, id="one"),
        pytest.param({"gpuMemory": "24Gi"}, [80], Device(gpus=1, gpu_memory_bytes=24 << 30), False, id="said"),
        pytest.param({"gpusPerNode": 2}, [80, 40], Device(gpus=2, gpu_memory_bytes=40 << 30), False, id="two"),
        # Three cannot share 16 examples evenly.
        pytest.param({"gpusPerNode": 4}, [80] * 3, Device(gpus=2, gpu_memory_bytes=80 << 30), True, id="fewer"),
    ],
)
def test_the_device_is_what_is_there_of_what_is_asked(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], memory: list[int], device: Device, noted: bool
) -> None:
    monkeypatch.setattr(local_run, "_gpu_memory", lambda: [size << 30 for size in memory])
    spec = FineTuneJobSpec.model_validate(job({"spec.resources": asked})["spec"])
    found, note = local_run.local_device(spec)
    assert (found, bool(note)) == (device, noted)


def test_paths_of_the_command_line_become_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job()))
    arguments = argparse.Namespace(file="job.yaml", model="a model", dataset=None, output="s3://other/out")
    read = run._read_job(arguments)
    assert isinstance(read, dict)
    assert [read["spec"][part]["uri"] for part in ("model", "dataset", "output")] == [
        f"file://{tmp_path}/a model",
        "s3://data/train.jsonl",
        "s3://other/out",
    ]


@pytest.mark.parametrize("count", [0, 2])
def test_a_file_with_one_job_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump_all([secret, *(job(name=f"job-{number}") for number in range(count))]))
    assert main(["run", str(path)]) == 2
    assert f"has {count} FineTuneJobs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "code", "expected"),
    [
        pytest.param(None, 12, (12, "DatasetInvalid"), id="no-message"),
        pytest.param("{", 30, (30, "OutOfMemory"), id="cut-off"),
        pytest.param(None, -9, (137, "Killed"), id="killed"),
        pytest.param(None, -15, (143, "Killed"), id="terminated"),
        pytest.param(None, 3, (3, "UnknownExitCode"), id="unknown"),
    ],
)
def test_a_stage_without_a_last_word_is_known_by_its_exit_code(
    tmp_path: Path, written: str | None, code: int, expected: tuple[int, str]
) -> None:
    path = tmp_path / "message"
    if written is not None:
        path.write_text(written)
    message = stages._last_word("train", code, path)
    assert (message.exit_code, message.reason) == expected
    assert message.message


def test_a_last_word_that_belongs_to_another_exit_code_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_text(TerminationMessage(stage="train", exit_code=0, reason="Completed").encode())
    assert stages._last_word("train", -9, path).reason == "Killed"


def test_a_run_outside_a_gate_shows_its_results_and_exits_with_the_gates_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = TerminationMessage(
        stage="train", exit_code=24, reason="GateFailed", message="too low", trained=TrainResult(step=4)
    )

    def run_stage(stage: Any, **_: Any) -> TerminationMessage:
        return ended if stage == "train" else TerminationMessage(stage=stage, exit_code=0, reason="Completed")

    monkeypatch.setattr(run, "run_stage", run_stage)
    monkeypatch.setattr(run, "_show", lambda _, trained: print(f"results of step {trained.step}"))  # noqa: T201
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job()))

    assert main(["run", str(path), "--work-dir", str(tmp_path / "work")]) == 24
    out, err = capsys.readouterr()
    assert "results of step 4" in out
    assert err.strip() == "train: GateFailed: too low"


def test_being_stopped_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    message = TerminationMessage(stage="train", exit_code=ExitCode.PREEMPTED, reason="Preempted", message="Told to.")
    assert run._explain(message, "job.yaml") == ExitCode.PREEMPTED
    assert capsys.readouterr().err.splitlines()[1:] == [
        "train: Preempted: Told to.",
        "`finetune run job.yaml` goes on from the last checkpoint",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert f"finetune {command} " in out.partition("examples:")[2]
    assert "exit code" in out


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)
