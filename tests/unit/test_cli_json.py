"""`-o json` of every command: one JSON value on standard output, whatever people are told beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_contract.outcome import Manifest, TerminationMessage, TrainResult
from finetune_operator.cli import run as run_command
from finetune_operator.cli.__main__ import COMMANDS, main, parser_of
from tests.unit.rule_cases import job
from tests.unit.test_cli_estimate import CONFIG

KUBECTL = """#!/bin/sh
case "$*" in
  "get finetunejobs.finetuning.dev -o json") echo '{"items": [JOB]}' ;;
  "get finetunejobs.finetuning.dev case -o json") echo 'JOB' ;;
  "get pods "*) echo pod/case-0 ;;
  "logs "*--prefix) printf '[pod/case-0/train] step 1\\n[pod/case-0/train] step 2\\n' ;;
  "patch "*|"delete "*) ;;
  *) echo "no answer to $*" >&2; exit 1 ;;
esac
"""
MANIFEST = Manifest(
    job_name="case",
    job_namespace="team",
    job_uid="1",
    run=1,
    config_hash="",
    method="LoRA",
    base_model="base",
    dataset="data",
    created="2026-11-24T12:00:00Z",
    files=(),
    artifacts={},
)
SAMPLE = {"step": 0, "prompt": "hello", "answer": "bye"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job, its samples and its model, a cluster that has it, and a trainer that has run it."""
    manifest = job({"spec.output.uri": f"file://{tmp_path}/out", "spec.model.uri": f"file://{tmp_path}/model"})
    for name in ("bin", "model", "out/run-1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "out" / "run-1" / "samples.jsonl").write_text(json.dumps(SAMPLE))
    (tmp_path / "out" / "run-1" / "manifest.json").write_text(MANIFEST.to_json())
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest))
    meta = {"name": "case", "namespace": "team", "uid": "1", "resourceVersion": "1"}
    there = {**manifest, "metadata": meta, "status": {"phase": "Succeeded"}}
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.write_text(KUBECTL.replace("JOB", json.dumps(there)))
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.chdir(tmp_path)
    said = TerminationMessage(stage="train", exit_code=0, reason="Completed", trained=TrainResult(step=4))
    monkeypatch.setattr(run_command, "run_stage", lambda *_, **__: said)
    monkeypatch.setattr(run_command, "_show", lambda *_: print("for people"))  # noqa: T201
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        pytest.param("validate --local job.yaml", 0, "problems valid", id="validate"),
        pytest.param("validate none.yaml", 2, "problems valid", id="validate what is not there"),
        pytest.param("estimate job.yaml", 0, "choices family gpuMemoryBytes parameters sequenceLength", id="estimate"),
        pytest.param("run job.yaml --work-dir work", 0, "exitCode logTail message reason stage trained uri", id="run"),
        pytest.param("run none.yaml", 2, "exitCode problems", id="run what is not there"),
        pytest.param("verify file://{folder}/out/run-1", 0, "bytes files problems sha256", id="verify"),
        pytest.param("diff job.yaml", 0, "changes effect", id="diff"),
        pytest.param("status case", 0, "apiVersion kind metadata spec status", id="status"),
        pytest.param("watch case", 0, "apiVersion kind metadata spec status", id="watch"),
        pytest.param("suspend case", 0, "command message name", id="suspend"),
        pytest.param("cancel case", 0, "command message name", id="cancel"),
    ],
)
def test_an_object(words: str, code: int, names: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.format(folder=folder).split(), "-o", "json"]) == code
    assert sorted(json.loads(capsys.readouterr().out)) == names.split()


@pytest.mark.parametrize("words", ["status", "samples job.yaml", "samples case", "samples case --output json"])
def test_a_list(words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.split(), "-o", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found == SAMPLE or found["metadata"]["name"] == "case"


def test_a_line_of_a_log_is_an_object(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "case", "-o", "json"]) == 0
    lines: list[dict[str, Any]] = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(line["pod"], line["container"], line["line"]) for line in lines] == [
        ("case-0", "train", "step 1"),
        ("case-0", "train", "step 2"),
    ]


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"completion"}))
def test_no_command_is_without_it(command: str) -> None:
    commands = parser_of([command])._subparsers
    assert commands is not None
    (choices,) = [action.choices for action in commands._group_actions]
    assert choices is not None
    assert "-o" in dict(choices)[command]._option_string_actions
