"""A loss that shoots up and gradients that died end the run; curves as they ordinarily look do not."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.training.divergence import ABOVE, DEAD_STEPS, RECENT, GradientPulse, LossLevel
from finetune_trainer.training.loop import Loop
from tests.support.prepared import Case
from tests.support.training import THIRD_PARTY, forget_preemption, make_case, stop_after, train

pytestmark = THIRD_PARTY

# The training losses of real runs, as the loop logged them: SmolLM2-135M on the quick start's tickets, and the tests'
# tiny model with learning rates that it just bears (0.5) and does not bear (3).
RECORDED: dict[str, list[float]] = json.loads((Path(__file__).parent / "loss_curves.json").read_text())


def step_of_alarm(losses: Iterable[float]) -> int | None:
    level = LossLevel()
    for step, loss in enumerate(losses, start=1):
        level.observe(loss)
        if level.diverged:
            return step
    return None


def falling(step: int) -> float:
    return 1.2 + 2.5 * math.exp(-step / 40)


def noisy(step: int, dice: random.Random) -> float:
    return max(0.0, falling(step) + dice.gauss(0, 0.6))


def of_two_kinds(step: int, dice: random.Random) -> float:
    return 5.0 + dice.gauss(0, 0.5) if dice.random() < 0.15 else 0.4 + dice.gauss(0, 0.05)


def of_two_kinds_often(step: int, dice: random.Random) -> float:
    return 5.0 + dice.gauss(0, 0.5) if dice.random() < 0.4 else 0.4 + dice.gauss(0, 0.05)


def of_heavy_tail(step: int, dice: random.Random) -> float:
    return falling(step) * dice.lognormvariate(0, 0.8)


def by_heart(step: int, dice: random.Random) -> float:
    return max(0.0, 2.0 * 0.3 ** (step // 100) + dice.gauss(0, 0.1))


def with_spikes(step: int, dice: random.Random) -> float:
    return falling(step) + (8.0 if step % 60 < ABOVE - 1 and step > 60 else dice.gauss(0, 0.1))


@pytest.mark.parametrize("loss_at", [noisy, of_two_kinds, of_two_kinds_often, of_heavy_tail, by_heart, with_spikes])
def test_ordinary_curves_give_no_alarm(loss_at: Callable[[int, random.Random], float]) -> None:
    for seed in range(20):
        dice = random.Random(seed)  # noqa: S311
        assert step_of_alarm(loss_at(step, dice) for step in range(1, 1001)) is None


def climbing(step: int) -> float:
    return 1.2 + max(0, step - 100) * 0.02


def jumping(step: int) -> float:
    return 9.0 if step > 100 else 1.2


@pytest.mark.parametrize(
    ("loss_at", "latest"),
    [pytest.param(jumping, 100 + RECENT, id="at once"), pytest.param(climbing, 250, id="slowly")],
)
def test_a_loss_that_shoots_up_and_stays_is_an_alarm(loss_at: Callable[[int], float], latest: int) -> None:
    dice = random.Random(1)  # noqa: S311

    found = step_of_alarm(loss_at(step) + dice.gauss(0, 0.2) for step in range(1, 501))

    assert found is not None
    assert 100 < found <= latest


@pytest.mark.parametrize("name", [name for name in RECORDED if not name.startswith("diverging")])
def test_recorded_runs_give_no_alarm(name: str) -> None:
    assert step_of_alarm(RECORDED[name]) is None


@pytest.mark.parametrize("name", [name for name in RECORDED if name.startswith("diverging")])
def test_recorded_runs_that_diverged_do(name: str) -> None:
    assert step_of_alarm(RECORDED[name]) is not None


@pytest.mark.parametrize(
    ("norms", "loss", "stops"),
    [
        pytest.param([0.0] * DEAD_STEPS, 2.0, True, id="zero"),
        pytest.param([1e-40] * DEAD_STEPS, 2.0, True, id="denormal"),
        pytest.param([0.0] * (DEAD_STEPS - 1) + [0.1], 2.0, False, id="they came back"),
        pytest.param([1e-9] * 100, 2.0, False, id="small is not dead"),
        pytest.param([0.0] * 100, 1e-7, False, id="nothing left to learn"),
    ],
)
def test_gradients_are_dead_when_they_stay_zero(norms: list[float], loss: float, stops: bool) -> None:
    pulse = GradientPulse()
    for norm in norms:
        pulse.observe(norm, loss=loss)

    assert pulse.stopped == stops


# The same in a run.


def failure_of(case: Case) -> TrainerError:
    with pytest.raises(TrainerError) as failure:
        train(case)
    return failure.value


def steps_in_storage(case: Case, attempt: int = 1) -> list[str]:
    return sorted(path.name for path in (case.run / paths.CHECKPOINTS / f"attempt-{attempt:04d}").iterdir())


def ruin_weights_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do to the weights what one far too large update does."""
    compute = Loop.compute_loss

    def ruined(self: Loop, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 20)
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(Loop, "compute_loss", ruined)


def slow_case(folder: Path) -> Case:
    return make_case(
        folder, method="Full", learning_rate=1e-5, total_steps=60, checkpoint_every_steps=5, eval_every_steps=100
    )


def test_a_run_whose_loss_shot_up_ends_with_the_checkpoints_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ruin_weights_at(33, monkeypatch)
    case = slow_case(tmp_path)

    failure = failure_of(case)

    assert failure.code is ExitCode.LOSS_DIVERGED
    assert f"in {ABOVE} of the last {RECENT} steps, up to step {32 + ABOVE}," in failure.message
    assert steps_in_storage(case) == ["step-00000025", "step-00000030"]


def test_a_stop_in_between_does_not_start_the_count_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = slow_case(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(36, patch)
        ruin_weights_at(33, patch)
        assert failure_of(case).code is ExitCode.PREEMPTED
    forget_preemption()

    failure = failure_of(case.attempt(2))

    assert failure.code is ExitCode.LOSS_DIVERGED
    assert f"up to step {32 + ABOVE}," in failure.message


def test_a_run_whose_gradients_died_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Loop.compute_loss

    def cut_off(self: Loop, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, *args, **kwargs)
        return loss.detach() + 0 * loss if self.state.global_step >= 12 else loss

    monkeypatch.setattr(Loop, "compute_loss", cut_off)
    case = make_case(tmp_path, total_steps=60, checkpoint_every_steps=5, eval_every_steps=100)

    failure = failure_of(case)

    assert failure.code is ExitCode.GRADIENTS_VANISHED
    assert f"up to step {12 + DEAD_STEPS}" in failure.message
    assert steps_in_storage(case) == ["step-00000005", "step-00000010"]
