"""What is looked at before and between steps: the dry run, a loss that is not finite, and what is reported."""

from __future__ import annotations

import logging
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.progress import TrainerStatus, finite_metrics
from finetune_contract.run_config import Use
from finetune_contract.spec import Precision
from finetune_trainer.data.dataset import fetch_data, read_prepared
from finetune_trainer.errors import TrainerError
from finetune_trainer.fetch import fetch_model
from finetune_trainer.model.build import computing, hold_trained, load_for_training
from finetune_trainer.model.tokenizer import load_tokenizer
from finetune_trainer.reporting.progress import Poster
from finetune_trainer.storage import open_store
from finetune_trainer.training import callbacks, dryrun
from finetune_trainer.training.arguments import loop_arguments
from finetune_trainer.training.dryrun import Plan, dry_run, fit, largest_divisor, longest_batch, plans
from finetune_trainer.training.loop import Loop
from tests.support.prepared import Case, tiny_model
from tests.support.training import THIRD_PARTY, make_case, train

pytestmark = THIRD_PARTY


def make_loop(case: Case, *, micro_batch: int = 4) -> Loop:
    """Return a loop that is ready to train."""
    store = open_store(case.config.spec.output.uri, Use.OUTPUT)
    prepared = read_prepared(case.config, store)
    fetched = fetch_model(case.config, case.env, weights=True)
    folder = case.env.work / f"loop-{micro_batch}"
    return Loop(
        model=load_for_training(case.config, prepared.resolved, fetched.path, load_tokenizer(fetched.path)),
        tokenizer=load_tokenizer(fetched.path),
        data=fetch_data(case.config, prepared, store, folder=case.env.work / "data"),
        prepared=prepared,
        arguments=loop_arguments(case.config, prepared.resolved, micro_batch=micro_batch, folder=folder),
        flatten=False,
    )


def test_a_dry_run_leaves_nothing_behind(tmp_path: Path) -> None:
    loop = make_loop(make_case(tmp_path, spec={"lora": {"dropout": 0.5}}))
    weights = {name: value.clone() for name, value in loop.model.state_dict().items()}
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()

    dry_run(loop, micro_batch=4)

    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == state[1:]
    assert all(parameter.grad is None for parameter in loop.model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in loop.model.state_dict().items())
    assert loop.optimizer is None


def test_the_dry_run_takes_the_longest_examples(tmp_path: Path) -> None:
    loop = make_loop(make_case(tmp_path))
    lengths = sorted((len(ids) for ids in loop.train_dataset["input_ids"]), reverse=True)

    batch = longest_batch(loop, 4)

    assert sorted(batch["attention_mask"].sum(-1).tolist(), reverse=True) == lengths[:4]


def test_a_dry_run_finds_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    loop = make_loop(make_case(tmp_path))
    with torch.no_grad():
        next(p for name, p in loop.model.named_parameters() if name.endswith("lora_A.default.weight")).fill_(torch.inf)

    with pytest.raises(TrainerError, match="dry run") as failure:
        dry_run(loop, micro_batch=4)
    assert failure.value.code is ExitCode.LOSS_NOT_FINITE


def sizes(*micro_batches: int, recompute: bool = False) -> list[Plan]:
    return [Plan(size, recompute) for size in micro_batches]


KEPT, AGAIN = Plan(8, recompute=False), Plan(8, recompute=True)
SMALLER_FIRST = [*sizes(8, 4, 2, 1), *sizes(8, 4, 2, 1, recompute=True)]


@pytest.mark.parametrize(
    ("wanted", "free", "expected"),
    [
        pytest.param(KEPT, True, SMALLER_FIRST, id="smaller micro-batches before recomputation"),
        pytest.param(KEPT, False, sizes(8, 4, 2, 1), id="the user wants activations kept"),
        pytest.param(AGAIN, False, sizes(8, 4, 2, 1, recompute=True), id="the user wants recomputation"),
        pytest.param(
            AGAIN, True, [Plan(1, recompute=False), *sizes(8, 4, 2, 1, recompute=True)], id="the estimate does"
        ),
    ],
)
def test_what_is_tried_for_memory(wanted: Plan, free: bool, expected: list[Plan]) -> None:
    assert list(plans(wanted, batch_size=8, free=free)) == expected


@pytest.mark.parametrize(
    ("most", "recomputed", "chosen"),
    [(8, 8, Plan(8, False)), (3, 8, Plan(2, False)), (0, 5, Plan(4, True)), (0, 1, Plan(1, True))],
)
def test_the_first_plan_that_fits_is_taken(
    monkeypatch: pytest.MonkeyPatch, most: int, recomputed: int, chosen: Plan
) -> None:
    monkeypatch.setattr(dryrun, "dry_run", too_large_above(most, recomputed))
    monkeypatch.setattr(dryrun, "_memory", lambda _: None)

    found: Any = fit(lambda plan: plan, plans(KEPT, batch_size=8, free=True))  # type: ignore[arg-type, return-value]

    assert found == chosen


def too_large_above(most: int, recomputed: int) -> Any:
    def run(plan: Any, *, micro_batch: int) -> None:
        if micro_batch > (recomputed if plan.recompute else most):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    return run


def test_a_plan_that_leaves_no_room_is_passed_over_unless_it_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dryrun, "dry_run", lambda *_, **__: None)
    monkeypatch.setattr(dryrun, "_memory", lambda plan: (100 - 10 * (plan.micro_batch < 4), 100))

    found: list[Any] = [fit(lambda plan: plan, candidates) for candidates in (sizes(8, 4, 2, 1), sizes(8))]  # type: ignore[arg-type, return-value]

    assert found == sizes(2, 8)


@pytest.mark.parametrize(
    ("most", "recomputed"), [pytest.param(2, 8, id="smaller micro-batch"), pytest.param(0, 4, id="recomputation")]
)
def test_the_steps_of_another_plan_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, recomputed: int
) -> None:
    reference = train(make_case(tmp_path / "reference", micro_batch_size=8))

    def fits_less(loop: Loop, *, micro_batch: int) -> None:
        if micro_batch > (recomputed if loop.args.gradient_checkpointing else most):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        dry_run(loop, micro_batch=micro_batch)

    monkeypatch.setattr(dryrun, "dry_run", fits_less)
    other = train(make_case(tmp_path / "other", micro_batch_size=8))

    assert other.evaluation["training"]["microBatchSize"] == (most or recomputed)
    assert other.evaluation["training"]["gradientCheckpointing"] == (most == 0)
    assert other.losses == pytest.approx(reference.losses, abs=2e-5)


@pytest.mark.parametrize(("number", "limit", "expected"), [(16, 8, 8), (12, 5, 4), (7, 6, 1), (16, 0, None), (6, 3, 3)])
def test_the_micro_batch_divides_the_batch(number: int, limit: int, expected: int | None) -> None:
    assert largest_divisor(number, at_most=limit) == expected


def test_a_loss_that_stops_being_finite_ends_the_run_before_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Loop.compute_loss

    def spoilt(self: Loop, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(Loop, "compute_loss", spoilt)
    case = make_case(tmp_path, checkpoint_every_steps=2)

    with pytest.raises(TrainerError, match="loss at step 4 is nan") as failure:
        train(case)

    assert failure.value.code is ExitCode.LOSS_NOT_FINITE
    assert [path.name for path in (case.run / paths.CHECKPOINTS / "attempt-0001").iterdir()] == ["step-00000002"]


def test_the_operator_hears_how_far_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    posts: list[TrainerStatus] = []
    monkeypatch.setattr(Poster, "post", lambda _, status: posts.append(status))

    train(make_case(tmp_path, total_steps=6))

    last = finite_metrics(posts[-1])
    assert {"step", "totalSteps", "epoch", "loss", "evalLoss", "learningRate", "tokensPerSecond"} <= last.keys()
    assert (last["step"], last["totalSteps"], last["checkpointStep"]) == (6, 6, 6)
    assert [post.progress_percentage for post in posts if post.progress_percentage is not None][-1] == 100
    steps = [finite_metrics(post)["step"] for post in posts]
    assert steps == sorted(steps)


def test_a_log_gets_a_line_every_few_seconds_and_the_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    train(make_case(tmp_path / "rare", total_steps=12, eval_every_steps=100))
    rare = len(re.findall(r"step \d+/12: loss", caplog.text))
    caplog.clear()
    monkeypatch.setattr(callbacks, "LINE_EVERY", 0.0)
    train(make_case(tmp_path / "often", total_steps=12, eval_every_steps=100))

    assert 2 <= rare < 12
    assert re.search(r"step 12/12: loss \d+\.\d+, [\d,]+ tokens/s", caplog.text)
    assert len(re.findall(r"step \d+/12: loss", caplog.text)) == 12


def test_a_terminal_gets_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    train(make_case(tmp_path, total_steps=4))

    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "tokens/s" in shown
    assert "held-out loss" in shown


def test_a_4_bit_model_has_right_gradients_after_an_evaluation(tmp_path: Path) -> None:
    """On CPUs with avx512_bf16, bitsandbytes would repack the weights there, and gradients would be wrong silently."""
    loop = make_loop(make_case(tmp_path, method="QLoRA", precision=Precision.BFLOAT16, model=wide_model(tmp_path)))
    hold_trained(loop.model)
    with torch.no_grad():  # adapters start as zero, and so would their gradients
        for name, parameter in loop.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    before = gradients(loop)

    loop.evaluate()

    after = gradients(loop)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert max(gradient.abs().max().item() for gradient in before.values()) > 0


def wide_model(folder: Path) -> Path:
    """Return a model whose layers are wide enough for the kernels that repack weights."""
    return tiny_model(folder / "wide", hidden_size=256, intermediate_size=512)


def gradients(loop: Loop) -> dict[str, torch.Tensor]:
    batch = longest_batch(loop, 4)
    with computing(loop.precision):
        loop.training_step(loop.model, batch, batch["labels"].ne(-100).sum())
    found = {
        name: parameter.grad.clone() for name, parameter in loop.model.named_parameters() if parameter.grad is not None
    }
    loop.model.zero_grad(set_to_none=True)
    return found
