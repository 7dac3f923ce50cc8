"""A run that is stopped and goes on gives what an undisturbed one gives: losses, held-out losses, weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.spec import Optimizer
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.evaluate import held_out_loss
from finetune_trainer.preemption import PREEMPTION
from finetune_trainer.training import callbacks
from tests.support.prepared import Case, tiny_model
from tests.support.training import THIRD_PARTY, Outcome, forget_preemption, make_case, stopped, train

pytestmark = THIRD_PARTY

# Dropout draws random numbers at every step: a resume that lost their state would show.
DROPOUT = {"lora": {"dropout": 0.2}}
STEPS = 9


@pytest.fixture(autouse=True)
def _no_signal_before() -> Iterator[None]:
    forget_preemption()
    yield
    forget_preemption()


def files(outcome: Outcome, folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (outcome.run / folder).iterdir() if path.suffix != ".md"}


def assert_same(resumed: Outcome, undisturbed: Outcome) -> None:
    assert resumed.losses == undisturbed.losses
    assert resumed.held_out_losses == undisturbed.held_out_losses
    assert files(resumed, paths.MERGED) == files(undisturbed, paths.MERGED)


PISSA = {"lora": {"rank": 4, "initialization": "pissa", "loraPlusRatio": 4, "modulesToSave": ["embed_tokens"]}}


@pytest.mark.parametrize(
    ("method", "spec"),
    [
        pytest.param("LoRA", DROPOUT, id="LoRA"),
        pytest.param("QLoRA", DROPOUT, id="QLoRA"),
        pytest.param("Full", {}, id="Full"),
        pytest.param("LoRA", PISSA, id="PiSSA"),
        pytest.param("QLoRA", {"lora": {"rank": 4, "dora": True}}, id="DoRA"),
    ],
)
def test_a_stopped_and_resumed_run_equals_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, spec: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"method": method, "total_steps": STEPS, "checkpoint_every_steps": 100}
    undisturbed = train(make_case(tmp_path / "undisturbed", spec=spec, **settings))
    case = make_case(tmp_path / "disturbed", spec=spec, **settings)

    # The epoch has four steps of 8 of 29 examples: one stop inside, one at an epoch's end, which measures too.
    stopped(case, after=2, monkeypatch=monkeypatch)
    stopped(case.attempt(2), after=7, monkeypatch=monkeypatch)
    resumed = train(case.attempt(3))

    assert resumed.result.resumed_from_step == 8
    assert_same(resumed, undisturbed)


@pytest.mark.parametrize("optimizer", [Optimizer.ADAMW_8BIT, Optimizer.LION_8BIT, Optimizer.ADAFACTOR])
def test_a_resumed_optimizer_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: Optimizer
) -> None:
    """To the last digit, 8-bit state too. The layers are wide enough for it: bitsandbytes holds small ones in 32.

    What is paged on a GPU is unpaged on a CPU.
    """
    spec = {"hyperparameters": {"optimizer": optimizer}, "lora": {"rank": 64, "targetModules": ["down_proj"]}}
    model = tiny_model(tmp_path / "model", hidden_size=64, intermediate_size=128)
    settings: dict[str, Any] = {
        "model": model,
        "spec": spec,
        "total_steps": 5,
        "checkpoint_every_steps": 100,
        "eval_every_steps": 5,
    }
    undisturbed = train(make_case(tmp_path / "undisturbed", **settings))
    case = make_case(tmp_path / "disturbed", **settings)

    stopped(case, after=2, monkeypatch=monkeypatch)
    resumed = train(case.attempt(2))

    assert resumed.result.resumed_from_step == 3
    assert_same(resumed, undisturbed)
    assert undisturbed.losses[5] < undisturbed.losses[1]


def test_a_signal_during_a_measurement_puts_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = train(make_case(tmp_path / "undisturbed", total_steps=STEPS))
    case = make_case(tmp_path / "disturbed", total_steps=STEPS)

    def told_to_stop(*args: Any, **kwargs: Any) -> float:
        PREEMPTION.request()
        return held_out_loss(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("finetune_trainer.training.loop.held_out_loss", told_to_stop)
        with pytest.raises(TrainerError) as failure:
            train(case)
    forget_preemption()

    assert failure.value.code is ExitCode.PREEMPTED
    assert_same(train(case.attempt(2)), undisturbed)


def test_a_stop_after_the_last_step_repeats_evaluation_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tmp_path, total_steps=6)

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

    assert again.result.resumed_from_step == again.result.step == 6
    assert len(again.losses) == 6


def test_a_signal_before_training_stops_the_run_at_once(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    PREEMPTION.request()

    with pytest.raises(TrainerError) as failure:
        train(case)

    assert failure.value.code is ExitCode.PREEMPTED
    assert not (case.run / paths.CHECKPOINTS).exists()


def test_a_resumed_run_may_have_another_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = train(make_case(tmp_path / "undisturbed", total_steps=STEPS))
    case = make_case(tmp_path / "disturbed", total_steps=STEPS)
    stopped(case, after=4, monkeypatch=monkeypatch)
    lowered = case.config.spec.model_copy(
        update={"hyperparameters": case.config.spec.hyperparameters.model_copy(update={"micro_batch_size": 1})}
    )
    second = case.attempt(2)

    resumed = train(Case(second.config.model_copy(update={"spec": lowered}), second.env, second.run))

    assert resumed.losses == pytest.approx(undisturbed.losses, abs=1e-5)


def test_weights_that_were_better_before_stay_apart_from_those_that_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer takes a folder with an adapter inside a checkpoint for a second adapter of the model."""

    def worse_later(model: Any, *args: Any, **kwargs: Any) -> float:
        return held_out_loss(model, *args, **kwargs) + (0.0 if next(measured) == 0 else 1.0)

    measured = count()
    monkeypatch.setattr("finetune_trainer.training.loop.held_out_loss", worse_later)
    case = make_case(tmp_path, total_steps=STEPS, spec={"checkpoint": {"keep": 100}})
    stopped(case, after=4, monkeypatch=monkeypatch)

    resumed = train(case.attempt(2))

    assert resumed.evaluation["training"]["bestStep"] == 2
    newest = case.run / paths.CHECKPOINTS / "attempt-0002" / f"step-{STEPS:08}"
    assert sorted(path.name for path in newest.iterdir() if path.is_dir()) == ["best"]
    assert not any(path.is_dir() for path in (newest / "best").iterdir())


def test_checkpoints_come_by_minutes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock, and so every step, takes 40 seconds of the test's time."""
    ticks = count(0, 40)
    monkeypatch.setattr(callbacks, "clock", lambda: next(ticks))
    case = make_case(
        tmp_path, spec={"checkpoint": {"everyMinutes": 1, "keep": 100}}, total_steps=9, checkpoint_every_steps=None
    )

    train(case)

    stored = sorted(int(path.name[5:]) for path in (case.run / paths.CHECKPOINTS / "attempt-0001").iterdir())
    assert stored == [2, 4, 6, 8, 9]


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = train(make_case(tmp_path / "undisturbed", spec=DROPOUT, total_steps=STEPS))
    case = make_case(tmp_path / "disturbed", spec=DROPOUT, total_steps=STEPS)
    stopped(case, after=7, monkeypatch=monkeypatch)
    newest = case.run / paths.CHECKPOINTS / "attempt-0001" / "step-00000008" / "optimizer.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content))

    resumed = train(case.attempt(2))

    assert "step 8 is not used: optimizer.pt is damaged or missing" in caplog.text
    assert resumed.result.resumed_from_step == 6
    assert_same(resumed, undisturbed)


# From the checkpoint of another run.

STEADY: dict[str, Any] = {"hyperparameters": {"scheduler": "constant", "warmupRatio": 0.0}}


@pytest.fixture(scope="module")
def shorter(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run of four steps, with checkpoints of two and four."""
    return train(make_case(tmp_path_factory.mktemp("shorter"), spec=STEADY, total_steps=4))


def longer(folder: Path, shorter: Outcome, source: str, *, spec: dict[str, Any] | None = None, **changes: Any) -> Case:
    """Return a run of the same model and data that starts where a URI below the shorter one says."""
    checkpoint = {"resumeFrom": source.format(run=f"file://{shorter.run}")}
    settings = {"total_steps": 8, **changes}
    model = shorter.run.parent.parent / "model"
    return make_case(folder, model=model, spec={**STEADY, "checkpoint": checkpoint, **(spec or {})}, **settings)


@pytest.mark.parametrize(
    ("source", "step"), [("{run}", 4), ("{run}/checkpoints/attempt-0001/step-00000002", 2)], ids=["run", "checkpoint"]
)
def test_a_run_goes_on_from_another(tmp_path: Path, shorter: Outcome, source: str, step: int) -> None:
    undisturbed = train(longer(tmp_path / "undisturbed", shorter, "Latest"))

    resumed = train(longer(tmp_path / "resumed", shorter, source))

    assert resumed.result.resumed_from_step == step
    assert_same(resumed, undisturbed)


def test_its_own_checkpoints_come_before_those_of_another(
    tmp_path: Path, shorter: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = longer(tmp_path, shorter, "{run}")
    stopped(case, after=6, monkeypatch=monkeypatch)

    assert train(case.attempt(2)).result.resumed_from_step == 6


def test_a_run_may_always_begin_anew(tmp_path: Path, shorter: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    case = longer(tmp_path, shorter, "None")
    stopped(case, after=6, monkeypatch=monkeypatch)

    assert train(case.attempt(2)).result.resumed_from_step is None


@pytest.mark.parametrize(
    ("source", "changes", "says"),
    [
        pytest.param("{run}", {"spec": {"lora": {"rank": 4}}}, "with another lora", id="another adapter"),
        pytest.param("{run}", {"method": "Full"}, "with another method", id="another method"),
        pytest.param("{run}", {"learning_rate": 1e-3}, "another hyperparameters.learningRate", id="another rate"),
        pytest.param("{run}", {"total_steps": 4}, "stands at step 4, this run ends at 4", id="nothing left to train"),
        pytest.param("{run}/nowhere", {}, "there is no undamaged checkpoint", id="nothing there"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, shorter: Outcome, source: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(TrainerError, match=says) as failure:
        train(longer(tmp_path, shorter, source, **changes))

    assert failure.value.code is ExitCode.CHECKPOINT_UNUSABLE


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, shorter: Outcome) -> None:
    case = make_case(tmp_path, spec={**STEADY, "checkpoint": {"resumeFrom": f"file://{shorter.run}"}}, total_steps=8)

    with pytest.raises(TrainerError, match="with another model"):
        train(case)
