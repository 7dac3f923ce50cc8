"""`output.ifExists: Adopt`: a job that is created again takes the results that are there, if they are its own run's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_contract import paths
from finetune_contract.evaluation import GateResult
from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import TerminationMessage
from finetune_contract.run_config import Device, RunConfig
from finetune_operator.cli.__main__ import main
from finetune_operator.cli.local_run import LocalRun
from finetune_trainer.stage import run_stage
from tests.support.preparing import machine, run_config
from tests.support.results import write_run
from tests.unit.rule_cases import job as manifest

AGAIN = "of-the-job-that-was-created-again"


def job(folder: Path, *, if_exists: str = "Adopt", uid: str = AGAIN, **output: Any) -> RunConfig:
    output |= {"uri": f"file://{folder}/out", "ifExists": if_exists}
    return run_config(f"file://{folder}", model="file:///nowhere", uid=uid, output=output)


def last_word(config: RunConfig, folder: Path, *, stage: str = "prepare") -> TerminationMessage:
    """Run a stage of a job for which there is neither model nor data: it fails unless it adopts."""
    env = machine(folder)
    env.config.write_text(config.to_json())
    run_stage(stage, env)  # type: ignore[arg-type]
    said = TerminationMessage.decode(env.termination_log.read_text())
    assert said is not None
    return said


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The third run of a job of the same name that was deleted; its first two were others."""
    before = job(tmp_path, uid="of-the-job-that-was-deleted")
    for run, digest in ((1, "another"), (2, before.config_hash), (3, before.config_hash), (10, "another")):
        found = write_run(before.of_run(run).model_copy(update={"config_hash": digest}))
        if run == 3:
            newest = found
    return newest


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_the_newest_run_with_the_same_configuration_is_taken_over(earlier: Path, tmp_path: Path, stage: str) -> None:
    """By the train stage as well: in a pod that prepares itself, the operator may be too late to end it."""
    before = sorted(tmp_path.rglob("out/**/*"))
    said = last_word(job(tmp_path), tmp_path, stage=stage)
    assert (said.stage, said.exit_code) == (stage, ExitCode.SUCCESS)
    assert said.trained is not None
    assert (said.trained.adopted_run, said.trained.step, said.trained.eval_loss) == (3, 6, 1.0)
    assert said.trained.usage is None  # it was counted when it was used
    assert said.sha256 == hashlib.sha256((earlier / paths.MANIFEST).read_bytes()).hexdigest()
    assert sorted(tmp_path.rglob("out/**/*")) == before
    assert list((tmp_path / "work").iterdir()) == []


def test_what_was_pushed_to_the_hub_is_told_and_not_pushed_again(tmp_path: Path) -> None:
    hub = {"repo": "team/model"}
    run = write_run(job(tmp_path, uid="before", hub=hub))
    (run / paths.HUB).write_text(json.dumps({"repo": "team/model", "commit": "c0ffee"}))
    said = last_word(job(tmp_path, hub=hub), tmp_path)
    assert said.trained is not None
    assert said.trained.hub is not None
    assert said.trained.hub.commit == "c0ffee"


def test_results_outside_a_gate_fail_the_job_again(tmp_path: Path) -> None:
    gate = GateResult.model_validate({"metric": "loss", "max": 0.5, "value": 1.0, "passed": False})
    write_run(job(tmp_path, uid="before"), gates=(gate,))
    said = last_word(job(tmp_path), tmp_path)
    assert (said.exit_code, said.reason) == (ExitCode.GATE_FAILED, "GateFailed")
    assert said.trained is not None


def _damage(run: Path) -> None:
    (run / "adapter" / "a").write_text("abd")


def _shorten(run: Path) -> None:
    (run / "adapter" / "a").write_text("ab")


def _remove(run: Path) -> None:
    (run / "adapter" / "a").unlink()


@pytest.mark.parametrize("harm", [_damage, _shorten, _remove], ids=["damaged", "shorter", "not there"])
def test_a_file_that_is_not_as_listed_is_named(earlier: Path, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    harm(earlier)
    said = last_word(job(tmp_path), tmp_path)
    assert said.exit_code == ExitCode.OUTPUT_EXISTS
    assert "run-3 holds results of a run with this configuration, but adapter/a is not as its manifest" in said.message


@pytest.mark.usefixtures("earlier")
@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.model_copy(update={"config_hash": "of-another-spec"}),
        lambda config: job(Path(config.spec.output.uri.removeprefix("file://")).parent, if_exists="Fail"),
    ],
    ids=["another configuration", "Fail"],
)
def test_otherwise_the_folder_is_another_jobs(tmp_path: Path, change: Callable[[RunConfig], RunConfig]) -> None:
    said = last_word(change(job(tmp_path)), tmp_path)
    assert said.exit_code == ExitCode.OUTPUT_EXISTS
    assert "run-1 already belongs to another job" in said.message


@pytest.mark.usefixtures("earlier")
def test_a_second_run_was_asked_for(tmp_path: Path) -> None:
    assert last_word(job(tmp_path).of_run(4), tmp_path).exit_code == ExitCode.MODEL_NOT_FOUND


FAILED = GateResult.model_validate({"metric": "loss", "max": 0.5, "value": 1.0, "passed": False})


@pytest.mark.parametrize(
    ("if_exists", "gates", "code", "said"),
    [
        ("Adopt", (), ExitCode.SUCCESS, "verified: 2 files"),
        ("Adopt", (FAILED,), ExitCode.GATE_FAILED, "prepare: GateFailed"),
        ("Fail", (), ExitCode.OUTPUT_EXISTS, "run-1 already belongs to another job"),
    ],
    ids=["taken over", "taken over outside a gate", "not wanted"],
)
def test_a_local_run_takes_over_what_another_job_has_left(  # noqa: PLR0917
    tmp_path: Path, capfd: pytest.CaptureFixture[str], if_exists: str, gates: Any, code: int, said: str
) -> None:
    """`finetune run` shows and verifies the earlier run's results; there is neither model nor data to train with."""
    output = {"uri": f"file://{tmp_path}/out", "ifExists": if_exists}
    body = manifest({"spec.model.uri": "file:///nowhere", "spec.output": output}, name="again")
    before = LocalRun(name="before", spec=body["spec"], folder=tmp_path / "before", claims=None)
    run = write_run(before.config(Device()), gates=gates)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(body))

    assert main(["run", str(path), "--work-dir", str(tmp_path / "again")]) == code

    out, err = capfd.readouterr()
    assert said in out + err
    assert (f"manifest  file://{run}/manifest.json" in out) == (if_exists == "Adopt")
