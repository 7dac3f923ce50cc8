"""The train stage as a process with its outputs in S3: killed, told to stop, and left without storage."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dev.cluster.s3 import S3Server
from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import TerminationMessage
from finetune_contract.run_config import Use
from finetune_trainer.checkpoints import checkpoint
from finetune_trainer.errors import TrainerError
from finetune_trainer.logs import log
from finetune_trainer.preemption import PREEMPTION, SIGNALS
from finetune_trainer.stage import run_stage
from finetune_trainer.storage import Store, open_store
from finetune_trainer.storage.folders import upload_folder
from finetune_trainer.training.callbacks import Report
from tests.support.prepared import Case
from tests.support.processes import read_until, trainer
from tests.support.training import THIRD_PARTY, forget_preemption, make_case, train

pytestmark = THIRD_PARTY

SETTINGS: dict[str, Any] = {"total_steps": 30, "checkpoint_every_steps": 5, "eval_every_steps": 5}
SPEC: dict[str, Any] = {"lora": {"dropout": 0.1}, "evaluation": {"metrics": ["exactMatch"], "maxNewTokens": 3}}


def in_bucket(case: Case, bucket: str) -> tuple[Case, Store]:
    """Return the case with its prepared data and outputs in S3."""
    spec = case.config.spec.model_copy(update={"output": case.config.spec.output.model_copy(update={"uri": bucket})})
    config = case.config.model_copy(update={"spec": spec})
    store = open_store(bucket, Use.OUTPUT)
    upload_folder(store, case.run, config.run_uri)
    return Case(config, case.env, case.run), store


def evaluation(case: Case, store: Store) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(store.read(paths.join(case.config.run_uri, paths.EVALUATION)))
    return content


def curves(case: Case, store: Store) -> tuple[object, object, object]:
    content = evaluation(case, store)
    return content["training"]["losses"], content["training"]["heldOutLosses"], content["tuned"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return train(make_case(tmp_path_factory.mktemp("undisturbed"), spec=SPEC, **SETTINGS)).evaluation


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_ended_goes_on_as_if_nothing_had_been(
    tmp_path: Path, bucket: str, undisturbed: dict[str, Any], number: signal.Signals
) -> None:
    case, store = in_bucket(make_case(tmp_path, spec=SPEC, **SETTINGS), bucket)

    with trainer(case) as first:
        read_until(first, "checkpoint of step 10 stored")
        first.send_signal(number)
        code = first.wait(timeout=60)
    with trainer(case.attempt(2)) as second:
        assert second.stderr is not None
        log = second.stderr.read()
        assert second.wait(timeout=120) == 0, log

    assert code == (-signal.SIGKILL if number == signal.SIGKILL else ExitCode.PREEMPTED)
    assert "going on from the checkpoint of attempt 1" in log
    training = undisturbed["training"]
    assert curves(case, store) == (training["losses"], training["heldOutLosses"], undisturbed["tuned"])
    last_word = TerminationMessage.decode(case.attempt(2).env.termination_log.read_text())
    assert last_word is not None
    assert last_word.trained is not None
    assert last_word.trained.resumed_from_step >= 10  # type: ignore[operator]


def test_a_signal_in_training_checkpoints_the_step_at_hand(tmp_path: Path) -> None:
    case = make_case(tmp_path, spec=SPEC, **{**SETTINGS, "checkpoint_every_steps": 1000})
    case.env.config.write_text(case.config.to_json())

    with signal_at("step 10: held-out loss"):
        code = run_stage("train", case.env)

    last_word = TerminationMessage.decode(case.env.termination_log.read_text())
    assert last_word is not None
    assert (code, last_word.reason) == (ExitCode.PREEMPTED, "Preempted")
    assert "checkpoint of step 11 stored" in last_word.log_tail
    assert [path.name for path in (case.run / paths.CHECKPOINTS / "attempt-0001").iterdir()] == ["step-00000011"]


class SignalAt(logging.Handler):
    """Sends this process the signal when the log says a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def signal_at(text: str) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handler = SignalAt(text)
    log.addHandler(handler)
    PREEMPTION.install()
    try:
        yield
    finally:
        log.removeHandler(handler)
        for number, action in before.items():
            signal.signal(number, action)
        forget_preemption()


@pytest.mark.parametrize("moment", ["loading file", "evaluating the base model", "evaluating the tuned", "exporting"])
def test_a_signal_outside_of_training_stops_at_once(tmp_path: Path, moment: str) -> None:
    case = make_case(tmp_path, spec=SPEC, total_steps=2)
    case.env.config.write_text(case.config.to_json())

    with signal_at(moment):
        code = run_stage("train", case.env)

    last_word = TerminationMessage.decode(case.env.termination_log.read_text())
    assert last_word is not None
    assert code == last_word.exit_code == ExitCode.PREEMPTED
    assert not (case.run / paths.MANIFEST).exists()


def test_storage_that_goes_away_in_training_ends_the_run_after_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint, "PATIENCE", 3.0)
    monkeypatch.setattr(checkpoint, "_FIRST_PAUSE", 0.2)
    report = Report._report_step
    with S3Server(tmp_path / "server") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        bucket = f"s3://{server.create_bucket('away')}/out"
        case, _ = in_bucket(make_case(tmp_path, **{**SETTINGS, "checkpoint_every_steps": 2}), bucket)

        def report_and_stop(self: Report, state: Any, logs: dict[str, float]) -> None:
            report(self, state, logs)
            if state.global_step == 5:
                server.stop()

        monkeypatch.setattr(Report, "_report_step", report_and_stop)

        with pytest.raises(TrainerError) as failure:
            train(case)

    assert failure.value.code is ExitCode.STORAGE_UNAVAILABLE
    assert "is not stored yet, trying again" in caplog.text
