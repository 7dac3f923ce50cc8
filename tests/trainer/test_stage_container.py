"""A stage as the container runs it: configuration, log, termination message, imports."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import TerminationMessage
from finetune_trainer.__main__ import main
from finetune_trainer.errors import TrainerError
from finetune_trainer.stage import load_config, run_stage
from tests.support.prepared import make_config, make_environment
from tests.support.results import write_run

LINE = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING|ERROR) .+$")


def write_config(folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(make_config(output_uri=f"file://{folder}/out", model_uri="file:///nowhere").to_json())
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: config.pop("job"), "job"),
        (lambda config: config["spec"].update(method="Lora"), "spec.method"),
        (lambda config: config["spec"]["hyperparameters"].update(learningRate="fast"), "learningRate"),
        (lambda config: config.update(surprise=1), "surprise"),
    ],
)
def test_a_bad_configuration_is_refused_by_field(config: Path, change: object, named: str) -> None:
    content = json.loads(config.read_text())
    change(content)  # type: ignore[operator]
    config.write_text(json.dumps(content))

    with pytest.raises(TrainerError) as failure:
        load_config(config)

    assert failure.value.code is ExitCode.CONFIG_INVALID
    assert named in failure.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_configuration_that_is_no_json_object_is_refused(config: Path, text: str) -> None:
    config.write_text(text)
    with pytest.raises(TrainerError, match="Run configuration"):
        load_config(config)


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    env = make_environment(tmp_path)

    assert run_stage("train", env) == ExitCode.CONFIG_INVALID
    assert str(env.config) in env.termination_log.read_text()


def test_without_a_place_for_the_last_word_the_exit_code_is_the_same(tmp_path: Path) -> None:
    env = make_environment(tmp_path)
    env.termination_log.parent.rmdir()

    assert run_stage("train", env) == ExitCode.CONFIG_INVALID


def container(config: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, paths.ENV_CONFIG: str(config), paths.ENV_WORK: str(config.parent), **variables}
    command = [sys.executable, "-m", "finetune_trainer", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_a_container_logs_lines_and_leaves_its_last_word(config: Path, tmp_path: Path) -> None:
    done = container(config, "prepare", FINETUNE_TERMINATION_LOG=str(tmp_path / "log"))

    message = TerminationMessage.decode((tmp_path / "log").read_text())
    assert message is not None
    assert done.returncode == message.exit_code == ExitCode.MODEL_NOT_FOUND
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines
    assert all(LINE.match(line) for line in lines)
    assert message.log_tail == done.stderr.rstrip("\n")[-500:]


def test_help_loads_nothing() -> None:
    code = "import sys; from finetune_trainer.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    heavy = "print([m for m in ('torch', 'transformers', 'pydantic', 'boto3') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_only_train_loads_training_libraries() -> None:
    modules = ("stage", "prepare", "fetch", "collect")
    code = "".join(f"import sys, finetune_trainer.{module}\n" for module in modules)
    heavy = "print([m for m in ('torch', 'trl', 'peft', 'accelerate', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_an_unknown_stage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(["deploy"])

    assert exit_code.value.code == 2
    assert "deploy" in capsys.readouterr().err


def test_collect_reads_the_results_of_a_run_whose_last_word_was_lost(tmp_path: Path) -> None:
    run = write_run(load_config(write_config(tmp_path)))

    env = make_environment(tmp_path)
    assert run_stage("collect", env) == 0

    last_word = TerminationMessage.decode(env.termination_log.read_text())
    assert last_word is not None
    assert (last_word.stage, last_word.reason) == ("collect", "Completed")
    assert last_word.sha256 == hashlib.sha256((run / paths.MANIFEST).read_bytes()).hexdigest()
    assert last_word.trained is not None
    assert (last_word.trained.step, last_word.trained.resumed_from_step, last_word.trained.eval_loss) == (6, 4, 1.0)
    assert last_word.trained.artifacts["adapter"].bytes == 3


def test_collect_says_when_there_is_nothing_to_collect(tmp_path: Path) -> None:
    write_config(tmp_path)
    env = make_environment(tmp_path)

    assert run_stage("collect", env) == ExitCode.RESULT_MISSING
