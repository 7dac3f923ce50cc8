"""`finetune validate --data`: the prepare Job's checks on a user's machine, with its words, and without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_contract.exit_codes import ExitCode
from finetune_operator.cli.__main__ import main
from finetune_trainer.check import run_check
from finetune_trainer.prepare import run_prepare
from tests.support.datasets import chat, chats, write_lines
from tests.support.models import tiny_llama
from tests.support.preparing import machine, run_config
from tests.unit.rule_cases import job


def manifest(folder: Path, dataset: dict[str, Any], **changes: Any) -> str:
    """Write a job that reads its data from here; return its path."""
    value = job({"spec.dataset": dataset, "spec.output.uri": "file:///nowhere", **changes})
    (folder / "job.yaml").write_text(yaml.safe_dump(value))
    return str(folder / "job.yaml")


def test_what_the_data_is_and_what_an_expert_would_change(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_lines(tmp_path / "data.jsonl", [*chats(30), chats(1)[0], chat("Lost?", "A letter \ufffd.")])
    path = manifest(
        tmp_path, {"uri": f"file://{tmp_path}/data.jsonl"}, **{"spec.hyperparameters": {"learningRate": 0.01}}
    )
    assert main(["validate", "--local", "--data", path]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    first, second, *warnings = out.splitlines()
    assert first == f"{path}: FineTuneJob case is valid"
    assert second.startswith(f"{path}: data: 32 examples (messages), ")
    assert second.endswith("held out; 1 duplicates, 0 near duplicates, 0 leaked, 1 damaged")
    wanted = [
        "learningRate 0.01 is high",
        "Only 32 examples",
        "1 of 32 examples have damaged letters",
        "1 of 32 examples",
    ]
    assert [next((want for want in wanted if want in warning), warning) for warning in warnings] == wanted
    assert all(warning.startswith(f"{path}: warning: ") for warning in warnings)


def test_bad_data_is_a_problem_of_the_job(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_lines(tmp_path / "claims" / "team" / "data.jsonl", [*chats(3), {"messages": []}])
    path = manifest(tmp_path, {"uri": "pvc://team/data.jsonl"})
    assert main(["validate", "--local", "--data", "--claims", str(tmp_path / "claims"), path]) == 2
    said = 'DatasetInvalid: data.jsonl line 4: "messages" is empty; add a user and an assistant turn'
    assert capfd.readouterr().err.splitlines() == [f"{path}: {said}", "1 problem found"]
    assert main(["validate", "--local", "--data", path]) == 2
    assert "pvc:// needs --claims FOLDER" in capfd.readouterr().err


def test_data_is_not_read_unasked_nor_for_a_job_that_is_wrong(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = {"uri": "file:///nowhere/data.jsonl"}
    assert main(["validate", "--local", manifest(tmp_path, dataset)]) == 0
    assert main(["validate", "--local", "--data", manifest(tmp_path, dataset, **{"spec.method": "lora"})]) == 2
    assert "DatasetNotFound" not in capfd.readouterr().err
    assert main(["validate", "--local", "--data", manifest(tmp_path, dataset)]) == 2
    assert "DatasetNotFound: Nothing lies at dataset.uri" in capfd.readouterr().err


def test_it_counts_as_prepare_does(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    write_lines(tmp_path / "a.jsonl", chats(60))
    write_lines(tmp_path / "b.jsonl", [*chats(5), chat("New?", "Yes.")])
    dataset = {
        "sources": [{"uri": f"file://{tmp_path}/a.jsonl", "weight": 1.5}],
        "validation": {"uri": f"file://{tmp_path}/b.jsonl"},
        "maxSamples": 50,
    }
    config = run_config(f"file://{tmp_path}", model=f"file://{model}", dataset=dataset)
    prepared, _ = run_prepare(config, machine(tmp_path))
    checked = run_check(config, machine(tmp_path))
    assert checked.model_dump(exclude={"warnings"}) == {
        name: getattr(prepared.dataset, name) for name in type(checked).model_fields if name != "warnings"
    }
    assert set(checked.warnings) <= set(prepared.dataset.warnings)
    assert checked.leaked > 0


def test_it_imports_nothing_heavy(tmp_path: Path) -> None:
    write_lines(tmp_path / "data.jsonl", chats(20))
    config = run_config(f"file://{tmp_path}", model="hf://organisation/name")
    (tmp_path / "config.json").write_text(config.to_json())
    code = (
        "import sys; from finetune_trainer.__main__ import main; code = main(['check', '--config', sys.argv[1]]);"
        "heavy = ('torch', 'transformers', 'boto3', 'pyarrow', 'huggingface_hub');"
        "print([name for name in heavy if sys.modules.get(name)]); sys.exit(code)"
    )
    environment = {"FINETUNE_WORK": str(tmp_path / "work"), "FINETUNE_TERMINATION_LOG": str(tmp_path / "message")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "config.json")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (ExitCode.SUCCESS, "[]")
    assert '"trainExamples"' in (tmp_path / "message").read_text()
