"""Several processes train as one does: same losses, same outputs, and one of them never leaves the others waiting."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import Manifest
from tests.support.prepared import Case
from tests.support.processes import (
    children,
    completed,
    finished,
    last_word,
    on_the_fast_path,
    outcome_of,
    preempted,
    read_until,
    trainer,
    with_processes,
)
from tests.support.training import THIRD_PARTY, Outcome, make_case, train

pytestmark = THIRD_PARTY

TOLERANCE = 2e-5
"""float32, sums in another order."""
SPEC: dict[str, Any] = {"evaluation": {"metrics": ["exactMatch"], "maxNewTokens": 3}}
# Four steps an epoch, the last one of 5 of 29 examples: not as many for each rank, nor for each micro-batch.
SETTINGS: dict[str, Any] = {"total_steps": 9, "micro_batch_size": 2, "checkpoint_every_steps": 4}


def two_ranks(case: Case) -> Case:
    return with_processes(case, 2)


GATED: dict[str, Any] = {
    "evaluation": {**SPEC["evaluation"], "gates": [{"metric": "loss", "max": 0.1}]},
    "tracking": {"tensorboard": {}},
}
"""What only the first rank does, with a gate that is missed: the tiny model learns little."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return train(make_case(tmp_path_factory.mktemp("alone"), spec=GATED, **SETTINGS))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, int, str]:
    """The outcome of two processes, their exit code and log."""
    case = two_ranks(make_case(tmp_path_factory.mktemp("together"), spec=GATED, **SETTINGS))
    with trainer(case) as process:
        code, log = finished(process)
    return outcome_of(case), code, log


def losses_of_examples(run: Path, name: str) -> list[float]:
    """Return the loss of every held-out example and paragraph of general text, in their order."""
    measured = json.loads((run / f"evaluation-{name}.json").read_text())["measured"]
    return [loss for loss, _ in measured["losses"] + measured["generalLosses"]]


def test_two_processes_give_what_one_gives(together: tuple[Outcome, int, str], alone: Outcome) -> None:
    outcome, _, log = together
    assert outcome.losses == pytest.approx(alone.losses, abs=TOLERANCE), log
    assert outcome.held_out_losses == pytest.approx(alone.held_out_losses, abs=TOLERANCE)
    assert outcome.evaluation["tuned"]["exactMatch"] == alone.evaluation["tuned"]["exactMatch"]
    tokens = alone.evaluation["training"]["trainedTokens"]
    assert outcome.evaluation["training"]["trainedTokens"] == pytest.approx(tokens, rel=0.05)  # fillers have two each
    manifest = Manifest.model_validate_json((outcome.run / paths.MANIFEST).read_bytes())
    assert set(manifest.artifacts) == {"adapter", "merged"}


def test_two_processes_on_the_fast_path_give_what_one_gives_without(tmp_path: Path, alone: Outcome) -> None:
    case = two_ranks(make_case(tmp_path, spec=SPEC, **SETTINGS))
    fast = completed(case, **on_the_fast_path(tmp_path))

    assert fast.evaluation["training"]["computedBy"].startswith("fast path: 2 decoder layers, 14 layers with LoRA")
    assert fast.losses == pytest.approx(alone.losses, abs=5e-5)
    assert fast.held_out_losses == pytest.approx(alone.held_out_losses, abs=5e-5)


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_each_example_has_its_own_loss_whoever_measured_it(
    name: str, together: tuple[Outcome, int, str], alone: Outcome
) -> None:
    expected = losses_of_examples(alone.run, name)
    assert len(set(expected)) > 20  # or their order would show nothing
    assert losses_of_examples(together[0].run, name) == pytest.approx(expected, rel=1e-4)


def test_one_process_speaks_for_both(together: tuple[Outcome, int, str]) -> None:
    outcome, code, log = together
    assert code == ExitCode.GATE_FAILED, log
    assert log.count("train: GateFailed: ") == 1
    assert len(list((outcome.run / paths.TENSORBOARD).rglob("events.out.*"))) == 1


def test_two_processes_go_on_from_the_checkpoint_of_another_run(tmp_path: Path, alone: Outcome) -> None:
    source = alone.run / paths.checkpoint_dir(1, 8)
    spec = {**SPEC, "checkpoint": {"resumeFrom": f"file://{source}"}}
    case = two_ranks(make_case(tmp_path, model=alone.run.parents[1] / "model", spec=spec, **SETTINGS))

    resumed = completed(case)

    assert resumed.result.resumed_from_step == 8
    assert resumed.losses == pytest.approx(alone.losses, abs=TOLERANCE)


@pytest.mark.parametrize("objective", ["DPO", "ORPO", "KTO"])
def test_two_processes_prefer_as_one_does(tmp_path: Path, objective: str) -> None:
    """Full, so that the weights move far within an epoch; the epoch's last step has 5 pairs."""
    spec = {"objective": objective, "evaluation": {"compareWithBase": False}}
    settings: dict[str, Any] = {"method": "Full", "spec": spec, "beta": 0.5, "micro_batch_size": 2, "total_steps": 5}
    alone = train(make_case(tmp_path / "alone", **settings))

    together = completed(two_ranks(make_case(tmp_path / "together", **settings)))

    assert together.losses == pytest.approx(alone.losses, abs=TOLERANCE)
    assert together.held_out_losses == pytest.approx(alone.held_out_losses, abs=TOLERANCE)
    assert together.result.usage == alone.result.usage


DROPOUT: dict[str, Any] = {**SPEC, "lora": {"dropout": 0.2}}


def test_a_stopped_and_resumed_run_of_two_equals_an_undisturbed_one(tmp_path: Path) -> None:
    """Dropout draws random numbers at every step: a rank that lost their state would show."""
    settings = {**SETTINGS, "total_steps": 12}
    undisturbed, disturbed = (
        two_ranks(make_case(tmp_path / name, spec=DROPOUT, **settings)) for name in ("undisturbed", "disturbed")
    )
    whole = completed(undisturbed)
    preempted(disturbed, once="checkpoint of step 4 stored")
    second = disturbed.attempt(2)

    resumed = completed(second)

    assert resumed.result.resumed_from_step is not None
    assert 4 <= resumed.result.resumed_from_step < 12
    assert resumed.losses == whole.losses
    assert resumed.held_out_losses == whole.held_out_losses
    adapter = "adapter/adapter_model.safetensors"
    assert (second.run / adapter).read_bytes() == (undisturbed.run / adapter).read_bytes()


@pytest.mark.parametrize(
    ("disturbance", "codes", "reason"),
    [
        pytest.param(signal.SIGKILL, {137}, "RankFailed", id="a rank dies"),
        pytest.param(signal.SIGSTOP, {ExitCode.COLLECTIVE_TIMEOUT}, "CollectiveTimeout", id="a rank hangs"),
    ],
)
def test_a_rank_that_is_lost_ends_the_attempt(
    tmp_path: Path, disturbance: signal.Signals, codes: set[int], reason: str
) -> None:
    case = two_ranks(make_case(tmp_path, spec=SPEC, **{**SETTINGS, "total_steps": 100_000, "eval_every_steps": 5}))

    with trainer(case, **{paths.ENV_COLLECTIVE_TIMEOUT: "8"}) as process:
        read_until(process, "checkpoint of step 4 stored")
        os.kill(children(process)[1], disturbance)
        code, log = finished(process)

    assert code in codes, log
    assert (last_word(case).exit_code, last_word(case).reason) == (code, reason)
