"""DeepSpeed's ZeRO changes where things lie, never what a run gives: shared out, offloaded, stopped, gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_contract import paths
from tests.support.prepared import Case
from tests.support.processes import completed, on_the_fast_path, preempted, with_processes
from tests.support.training import THIRD_PARTY, Outcome, make_case, train

pytestmark = THIRD_PARTY

TOLERANCE = 1e-3
"""float32, sums in another order, over steps that fit a small model to its data by heart: 1.6e-4 was seen."""
# The held-out loss is lowest before the end: the best weights have to be put back.
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-2,
    "total_steps": 60,
    "micro_batch_size": 2,
    "eval_every_steps": 10,
    "checkpoint_every_steps": 20,
}
SPEC: dict[str, Any] = {"evaluation": {"metrics": ["exactMatch"], "maxNewTokens": 3}}


def make(
    folder: Path,
    *,
    stage: int,
    processes: int,
    method: str = "Full",
    spec: dict[str, Any] | None = None,
    **changes: Any,
) -> Case:
    case = make_case(
        folder, method=method, spec={**SPEC, **(spec or {})}, **{**SETTINGS, "zero_stage": stage, **changes}
    )
    return with_processes(case, processes)


def weights(outcome: Outcome, file: str) -> dict[str, torch.Tensor]:
    return dict(load_file(outcome.run / file))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return train(make(tmp_path_factory.mktemp("alone"), stage=0, processes=1))


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda stage: f"stage {stage}")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("shared")
    return completed(make(folder, stage=request.param, processes=2), **as_with_large_models(folder))


def as_with_large_models(folder: Path) -> dict[str, str]:
    """Return variables with which stage 3 gathers some layers' weights at a time, not all of a tiny model's."""
    (folder / "sitecustomize.py").write_text("from finetune_contract import sharing\n\nsharing.LIVE = 3000\n")
    return {"PYTHONPATH": str(folder)}


def assert_same(outcome: Outcome, expected: Outcome) -> None:
    assert outcome.losses == pytest.approx(expected.losses, abs=TOLERANCE)
    assert outcome.held_out_losses == pytest.approx(expected.held_out_losses, abs=TOLERANCE)
    assert outcome.evaluation["tuned"]["exactMatch"] == expected.evaluation["tuned"]["exactMatch"]


def test_two_processes_that_share_give_what_one_gives(shared: Outcome, alone: Outcome) -> None:
    assert_same(shared, alone)
    assert alone.result.training is not None
    assert alone.result.training.best_step != alone.result.step


def test_the_merged_weights_are_whole(shared: Outcome, alone: Outcome) -> None:
    file = f"{paths.MERGED}/model.safetensors"
    expected = weights(alone, file)
    torch.testing.assert_close(weights(shared, file), expected, atol=2e-3, rtol=0)


def test_flat_micro_batches_on_gradients_that_are_shared_out(tmp_path: Path, alone: Outcome) -> None:
    """Their number follows from the tokens: the processes have not always as many for a step."""
    fast = completed(make(tmp_path, stage=2, processes=2, micro_batch_size=1), **on_the_fast_path(tmp_path))

    assert fast.evaluation["training"]["computedBy"].startswith("fast path: 2 decoder layers")
    assert_same(fast, alone)
    tokens = alone.evaluation["training"]["trainedTokens"]
    assert fast.evaluation["training"]["trainedTokens"] == pytest.approx(tokens, rel=0.02)  # fillers have two each


@pytest.mark.parametrize(("stage", "offload"), [(2, "optimizer"), (3, "all")])
def test_one_process_offloads_to_its_node(stage: int, offload: str, tmp_path: Path, alone: Outcome) -> None:
    assert_same(completed(make(tmp_path, stage=stage, processes=1, offload=offload)), alone)


@pytest.mark.parametrize(
    ("method", "recompute"),
    [pytest.param("LoRA", True, id="LoRA, recomputed"), pytest.param("QLoRA", False, id="QLoRA")],
)
def test_adapters_on_weights_that_are_shared_out(method: str, recompute: bool, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"method": method, "total_steps": 20, "eval_every_steps": 5}
    alone = train(make(tmp_path / "alone", stage=0, processes=1, **settings))
    case = make(tmp_path / "shared", stage=3, processes=2, gradient_checkpointing=recompute, **settings)
    shared = completed(case, **as_with_large_models(tmp_path))

    assert_same(shared, alone)
    file = "adapter/adapter_model.safetensors"
    torch.testing.assert_close(weights(shared, file), weights(alone, file), atol=2e-3, rtol=0)


def test_preferences_on_weights_that_are_shared_out(tmp_path: Path) -> None:
    """KTO makes every kind of pass: without gradients inside a step, and for what the base model says."""
    spec = {"objective": "KTO"}
    settings: dict[str, Any] = {"beta": 0.5, "total_steps": 12, "eval_every_steps": 4}
    alone = train(make(tmp_path / "alone", stage=0, processes=1, spec=spec, **settings))

    shared = completed(make(tmp_path / "shared", stage=3, processes=2, spec=spec, **settings))

    assert_same(shared, alone)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run of stage 3, undisturbed, whose checkpoints are all kept."""
    case = make(tmp_path_factory.mktemp("source"), stage=3, processes=2, spec={"checkpoint": {"keep": 3}})
    return completed(case)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_stopped_and_resumed_run_equals_an_undisturbed_one(stage: int, source: Outcome, tmp_path: Path) -> None:
    undisturbed = source if stage == 3 else completed(make(tmp_path / "undisturbed", stage=stage, processes=2))
    case = make(tmp_path / "disturbed", stage=stage, processes=2)
    preempted(case, once="checkpoint of step 20 stored")

    resumed = completed(case.attempt(2))

    assert resumed.result.resumed_from_step is not None
    assert 20 <= resumed.result.resumed_from_step < 60
    assert resumed.losses == undisturbed.losses
    assert resumed.held_out_losses == undisturbed.held_out_losses
    merged = f"{paths.MERGED}/model.safetensors"
    assert (resumed.run / merged).read_bytes() == (undisturbed.run / merged).read_bytes()


@pytest.mark.parametrize(
    ("stage", "processes"), [pytest.param(2, 1, id="one process, stage 2"), pytest.param(1, 2, id="stage 1")]
)
def test_another_number_of_processes_and_another_stage_go_on(
    stage: int, processes: int, source: Outcome, tmp_path: Path, alone: Outcome
) -> None:
    # Its own weights are the best ones, at that step and in the end.
    checkpoint = source.run / paths.checkpoint_dir(1, 20)
    assert source.result.training is not None
    assert source.result.training.best_step == 20
    resume = {"checkpoint": {"resumeFrom": f"file://{checkpoint}"}}
    model = source.run.parents[1] / "model"

    resumed = completed(make(tmp_path / "resumed", stage=stage, processes=processes, spec=resume, model=model))

    assert resumed.result.resumed_from_step == 20
    assert_same(resumed, alone)
