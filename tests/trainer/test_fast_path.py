"""The fast path computes what transformers and PEFT compute: each family's loss and gradients, and whole trainings."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_contract.spec import Lora, Precision
from finetune_trainer.data.dataset import IGNORED
from finetune_trainer.fast import choice as fast_choice
from finetune_trainer.fast.check import disagreement
from finetune_trainer.fast.kernels import attention_backends
from finetune_trainer.fast.micro_batches import MULTIPLE, StepCollator, pack
from finetune_trainer.fast.path import FastPath, flat, why_not
from finetune_trainer.fast.trainer import FlatTrainer
from finetune_trainer.model.adapters import attach
from tests.support.families import FAMILIES, make_model
from tests.support.training import THIRD_PARTY, make_case, stopped, train

pytestmark = THIRD_PARTY

LENGTHS = (20, 11, 33, 16)
"""Some longer than the sliding window of the families that have one."""
EXACT = 1e-4
"""Of a gradient's norm, in float32."""


def rows() -> list[dict[str, list[int]]]:
    dice = random.Random(0)  # noqa: S311
    found = [{"input_ids": [dice.randrange(5, 120) for _ in range(length)]} for length in LENGTHS]
    return [{**row, "labels": [IGNORED] * 4 + row["input_ids"][4:]} for row in found]


def tuned(family: str, *, quantised: bool = False, **lora: Any) -> Any:
    """Return a small random model with adapters that are not zero."""
    # On a CPU bitsandbytes takes rows that are no whole blocks for something else than it made of them.
    size = {"hidden_size": 64, "intermediate_size": 128} if quantised else {}
    base = make_model(family, {**FAMILIES[family], **size}, attn_implementation="sdpa").float()
    base.config.use_cache = False
    if quantised:
        from benchmarks.estimate_bench import quantise

        quantise(base, storage=torch.uint8)
        for module in base.modules():
            if hasattr(module, "compute_dtype"):
                module.compute_dtype, module.support_avx512bf16_for_cpu = torch.float32, False
    model = attach(base, Lora.model_validate({"rank": 4, **lora}), alpha=8, seed=0, quantised=quantised)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    # GPT-2 has dropout in its attention, which no kernel here computes.
    return model.eval() if family == "gpt2" or "dropout" in lora else model.train()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def fast_pass(model: Any, path: FastPath, *, tokens: int = 64) -> tuple[float, dict[str, torch.Tensor]]:
    total = 0.0
    with path.running():
        for one in StepCollator(tokens=tokens, pad_token_id=0)(rows())["micro_batches"]:
            with flat(one):
                loss = model(micro_batch=one)
                loss.backward()
            total += loss.item()
    return total, gradients(model)


def plain_pass(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    total = 0.0
    for row in rows():
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"])[1:], reduction="sum")
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def assert_same(model: Any, path: FastPath, **settings: Any) -> None:
    (loss, found), (expected_loss, expected) = fast_pass(model, path, **settings), plain_pass(model)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= EXACT * gradient.norm(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_adapter_has_the_gradient_of_transformers_and_peft(family: str) -> None:
    model = tuned(family)

    assert_same(model, FastPath(model, compiled=False))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "mixtral"])
def test_every_weight_of_a_model_that_is_trained_whole_has_its_gradient(family: str) -> None:
    model = make_model(family, FAMILIES[family], attn_implementation="sdpa").float().train()
    model.config.use_cache = False

    assert_same(model, FastPath(model, compiled=False))


@pytest.mark.parametrize(
    ("lora", "gated", "slow"),
    [
        pytest.param({}, 2, 0, id="all that is fast"),
        pytest.param({"targetModules": ["q_proj", "v_proj"]}, 0, 0, id="some layers"),
        pytest.param({"dropout": 0.1}, 0, 0, id="dropout"),
        pytest.param({"dora": True}, 0, 14, id="DoRA"),
        pytest.param({"rslora": True, "rank": 12}, 2, 0, id="a rank between the kernels'"),
    ],
)
def test_what_has_no_fast_part_is_computed_as_before(lora: dict[str, Any], gated: int, slow: int) -> None:
    model = tuned("llama", **lora)
    path = FastPath(model, compiled=False)

    assert (path.gated_mlps, path.slow_linears) == (gated, slow)
    assert_same(model, path)


def test_activations_can_be_computed_again() -> None:
    model = tuned("gemma3_text")
    path = FastPath(model, compiled=False)
    path.recompute = True

    assert_same(model, path)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi"])
def test_4_bit_weights_are_those_of_bitsandbytes(family: str) -> None:
    model = tuned(family, quantised=True)
    path = FastPath(model, compiled=False)

    assert path.gated_mlps == (0 if family == "phi" else 2)
    assert path.slow_linears == 0
    assert_same(model, path)


def test_nothing_of_it_is_left_outside() -> None:
    model = tuned("llama")
    before = {name: (type(module), dict(module.__dict__)) for name, module in model.named_modules()}
    path = FastPath(model, compiled=False)
    fast_pass(model, path)

    for name, module in model.named_modules():
        kind, held = before[name]
        assert type(module) is kind
        assert {key for key in module.__dict__ if not key.startswith(("_fast", "_nf4"))} == set(held)
    assert model.get_base_model().config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("lora", "changes", "reason"),
    [
        pytest.param({"modulesToSave": ["lm_head"]}, {}, "weights beside the adapters", id="the head is trained"),
        pytest.param({}, {"layer_types": ["linear_attention"] * 2}, "linear_attention", id="no attention"),
        pytest.param({}, {"attn_logit_softcapping": 50.0}, "caps scores", id="capped scores"),
    ],
)
def test_a_model_without_it_says_why(lora: dict[str, Any], changes: dict[str, Any], reason: str) -> None:
    model = tuned("llama", **lora)
    for name, value in changes.items():
        setattr(model.get_base_model().config, name, value)

    assert reason in (why_not(model) or "")


def test_what_a_model_asks_of_attention_beyond_it_shows_when_it_is_tried() -> None:
    model = tuned("gpt2").train()

    with pytest.raises(Exception, match="dropout"):
        disagreement(model, FastPath(model, compiled=False), rows(), precision=Precision.FLOAT32)


def test_two_ways_that_differ_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tuned("llama")
    path = FastPath(model, compiled=False)
    assert disagreement(model, path, rows(), precision=Precision.FLOAT32) is None

    # As if documents saw each other.
    monkeypatch.setattr(
        attention_backends.Plain, "__init__", lambda self, layout: setattr(self, "_layout", _joined(layout))
    )

    assert "gradients" in (disagreement(model, path, rows(), precision=Precision.FLOAT32) or "")


def _joined(layout: Any) -> Any:
    return type(layout)(layout.starts, (sum(layout.lengths),))


@contextmanager
def forced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the fast path on a CPU."""
    with monkeypatch.context() as patch:
        patch.setattr(fast_choice, "_worth_it", lambda: True)
        yield


def test_a_whole_training_is_that_of_the_plain_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(make_case(tmp_path / "plain", total_steps=9))
    with forced(monkeypatch):
        case = make_case(tmp_path / "fast", micro_batch_size=1, total_steps=9)
        stopped(case, after=3, monkeypatch=monkeypatch)
        fast = train(case.attempt(2))

    training = fast.evaluation["training"]
    assert training["computedBy"].startswith("fast path: 2 decoder layers, 14 layers with LoRA, 2 fused")
    assert (training["microBatchSize"], training["resumedFromStep"]) == (1, 4)
    assert fast.losses == pytest.approx(plain.losses, abs=5e-5)
    assert fast.held_out_losses == pytest.approx(plain.held_out_losses, abs=5e-5)
    assert training["trainedTokens"] == plain.evaluation["training"]["trainedTokens"]
    assert "computedBy" not in plain.evaluation["training"] or plain.evaluation["training"]["computedBy"] is None


def test_a_step_is_logged_while_the_next_one_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    compute, report = FlatTrainer._pass, FlatTrainer.log

    def passing(self: FlatTrainer, *args: Any, **named: Any) -> Any:
        seen.append("pass")
        return compute(self, *args, **named)

    def logging(self: FlatTrainer, logs: dict[str, float], *rest: Any) -> None:
        seen.extend([f"step {self.state.global_step}"] if "loss" in logs else [])
        report(self, logs, *rest)

    monkeypatch.setattr(FlatTrainer, "_pass", passing)
    monkeypatch.setattr(FlatTrainer, "log", logging)
    with forced(monkeypatch):
        train(make_case(tmp_path, total_steps=4, micro_batch_size=8))

    steps = seen[seen.index("step 1") - 2 :]
    # The second step is logged before its checkpoint is written.
    assert steps == ["pass", "pass", "step 1", "step 2", "pass", "pass", "step 3", "step 4"]


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        pytest.param([8, 8, 8, 8], 16, [[0, 2], [1, 3]], id="equal"),
        pytest.param([9, 1, 1, 1], 10, [[0], [1, 2, 3]], id="evenly full"),
        pytest.param([20, 3], 10, [[0], [1]], id="longer than a bin"),
        pytest.param([6, 6, 6], 10, [[0], [1], [2]], id="more bins than the sum asks for"),
    ],
)
def test_a_step_is_dealt_out_to_few_and_even_micro_batches(
    lengths: list[int], limit: int, expected: list[list[int]]
) -> None:
    assert pack(lengths, limit=limit) == expected


def test_a_flat_micro_batch_knows_its_documents() -> None:
    (one,) = StepCollator(tokens=100, pad_token_id=7)(rows())["micro_batches"]

    assert one.input_ids.shape[1] % MULTIPLE == 0
    assert one.tokens == sum(LENGTHS)
    assert one.lengths == (*LENGTHS, -sum(LENGTHS) % MULTIPLE)
    flat_ids = one.input_ids[0]
    assert torch.equal(flat_ids[one.counted + 1], one.targets)
    assert [int(one.position_ids[0, start]) for start in one.starts[:-1]] == [0] * len(one.lengths)
    assert set(flat_ids[sum(LENGTHS) :].tolist()) == {7}
