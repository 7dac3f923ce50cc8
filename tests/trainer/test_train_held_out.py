"""The held-out loss watched: overfitting is said, and a run whose loss no longer falls ends with its best weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.progress import TrainerStatus, finite_metrics
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.evaluate import held_out_loss
from finetune_trainer.preemption import PREEMPTION
from finetune_trainer.reporting.progress import Poster
from finetune_trainer.training.held_out import overfitting, stop_reason
from finetune_trainer.training.loop import Loop
from tests.support.training import THIRD_PARTY, Outcome, forget_preemption, make_case, train

pytestmark = THIRD_PARTY

EVERY = 10


def history(held_out: Sequence[float], training: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """Return a trainer's log: ten equal training losses, then a measurement, and again."""
    entries: list[dict[str, Any]] = []
    for number, loss in enumerate(held_out):
        value = training[number] if training else 1.0
        entries += [{"step": EVERY * number + step, "loss": value} for step in range(1, EVERY + 1)]
        entries.append({"step": EVERY * (number + 1), "eval_loss": loss})
    return entries


@pytest.mark.parametrize(
    ("held_out", "training", "since"),
    [
        pytest.param([2.0, 1.5, 1.6, 1.7], [2.0, 1.4, 1.2, 1.0], 20, id="rises while training falls"),
        pytest.param([2.0, 1.5, 1.6], [2.0, 1.4, 1.2], None, id="one measurement may be chance"),
        pytest.param([2.0, 1.5, 1.51, 1.505], [2.0, 1.4, 1.2, 1.0], None, id="a flat curve's noise"),
        pytest.param([2.0, 1.5, 1.6, 1.7], [2.0, 1.4, 1.5, 1.6], None, id="training rises too: another trouble"),
        pytest.param([2.0, 1.5, 1.7, 1.4], [2.0, 1.4, 1.2, 1.0], None, id="it came back"),
        pytest.param([2.0, 1.8, 1.6, 1.5], [2.0, 1.7, 1.6, 1.4], None, id="an ordinary run"),
        pytest.param([], [], None, id="nothing measured"),
    ],
)
def test_overfitting_is_a_rise_that_stays_while_training_falls(
    held_out: list[float], training: list[float], since: int | None
) -> None:
    found = overfitting(history(held_out, training))

    assert (found.since.step if found else None) == since


@pytest.mark.parametrize(
    ("held_out", "patience", "stops"),
    [
        pytest.param([2.0, 1.5, 1.6, 1.7], 2, True, id="as often as its patience"),
        pytest.param([2.0, 1.5, 1.6, 1.7], 3, False, id="once less"),
        pytest.param([2.0, 1.5, 1.5, 1.5], 2, True, id="equal is not better"),
        pytest.param([2.0, 1.5, 1.6, 1.4], 1, False, id="a new best counts afresh"),
        pytest.param([2.0, 1.5, 1.6, 1.7], None, False, id="not asked for"),
    ],
)
def test_a_run_stops_when_its_patience_is_used_up(held_out: list[float], patience: int | None, stops: bool) -> None:
    assert (stop_reason(history(held_out), patience=patience) is not None) == stops


# Twenty-nine sums of random digits: a model of two layers learns them by heart, and no sum beyond them.
BY_HEART: dict[str, Any] = {"method": "Full", "learning_rate": 1e-2, "total_steps": 60, "eval_every_steps": 5}
PATIENT = {"evaluation": {"earlyStopping": {"patience": 3}}}


def merged(outcome: Outcome) -> bytes:
    return (outcome.run / paths.MERGED / "model.safetensors").read_bytes()


def test_a_run_that_overfits_says_so_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    posts: list[TrainerStatus] = []
    monkeypatch.setattr(Poster, "post", lambda _, status: posts.append(status))
    caplog.set_level(logging.WARNING)

    outcome = train(make_case(tmp_path, **BY_HEART))

    training = outcome.result.training
    assert training is not None
    assert training.stopped_early is None
    assert outcome.result.step == 60
    best = training.best_step
    (warning,) = training.warnings
    assert warning.startswith(f"Overfitting since step {best}: ")
    assert warning in (outcome.run / paths.REPORT).read_text()
    assert f"Overfitting since step {best}: " in caplog.text
    assert finite_metrics(posts[-1])["overfittingSinceStep"] == best


def test_early_stopping_ends_the_run_and_exports_the_best(tmp_path: Path) -> None:
    whole = train(make_case(tmp_path / "whole", **BY_HEART))
    stopped = train(make_case(tmp_path / "stopped", spec=PATIENT, **BY_HEART))

    training = stopped.result.training
    assert training is not None
    assert training.best_step is not None
    assert stopped.result.step == training.best_step + 3 * 5 < 60
    assert training.stopped_early is not None
    assert f"that of step {training.best_step}, in 3 measurements" in training.stopped_early
    assert stopped.losses == {step: loss for step, loss in whole.losses.items() if step <= stopped.result.step}
    assert merged(stopped) == merged(whole)
    assert "Stopped early" in (stopped.run / paths.REPORT).read_text()
    # Whatever fails after the stop, the next attempt need not train again.
    assert stopped.result.checkpoint_step == stopped.result.step


def test_patience_survives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One pass a step: with several, Trainer would look at what the measurement says before the step is done.
    settings = {**BY_HEART, "micro_batch_size": 8}
    undisturbed = train(make_case(tmp_path / "undisturbed", spec=PATIENT, **settings))
    last = undisturbed.result.step
    case = make_case(tmp_path / "disturbed", spec=PATIENT, **settings)

    # The signal comes during the very measurement that would end the run: it is the first thing the next attempt does.
    def told_to_stop(*args: Any, **kwargs: Any) -> float:
        if loops[-1].state.global_step == last:
            PREEMPTION.request()
        return held_out_loss(*args, **kwargs)

    loops: list[Loop] = []
    evaluate = Loop.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "evaluate", lambda self, *_, **__: (loops.append(self), evaluate(self))[1])
        patch.setattr("finetune_trainer.training.loop.held_out_loss", told_to_stop)
        with pytest.raises(TrainerError) as failure:
            train(case)
    assert failure.value.code is ExitCode.PREEMPTED
    forget_preemption()

    resumed = train(case.attempt(2))

    assert resumed.result.resumed_from_step == resumed.result.step == last
    assert resumed.losses == undisturbed.losses
    assert resumed.held_out_losses == undisturbed.held_out_losses
    assert merged(resumed) == merged(undisturbed)


def test_what_fails_after_an_early_stop_trains_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tmp_path, spec=PATIENT, **BY_HEART)

    def told_to_stop(*_: Any) -> None:
        PREEMPTION.request()
        PREEMPTION.check()

    with monkeypatch.context() as patch:
        patch.setattr("finetune_trainer.train._evaluate", told_to_stop)
        with pytest.raises(TrainerError):
            train(case)
    forget_preemption()
    monkeypatch.setattr("finetune_trainer.training.loop.Loop.train", lambda *_, **__: pytest.fail("trains again"))

    again = train(case.attempt(2))

    assert again.result.training is not None
    assert again.result.training.stopped_early is not None
