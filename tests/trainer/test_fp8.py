"""A frozen base in FP8: its numbers are those that the card multiplies, and a run with it learns what it ought to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.fast import choice as fast_choice
from finetune_trainer.fast.kernels import fp8
from finetune_trainer.fast.kernels.frozen import frozen_linear
from finetune_trainer.fast.layers_fp8 import Fp8Linear, hold_in_fp8
from finetune_trainer.fast.path import FastPath
from finetune_trainer.training import fp8_base
from finetune_trainer.training.fp8_base import some, too_far
from tests.support.training import THIRD_PARTY, make_case, train
from tests.trainer.test_fast_path import assert_same, fast_pass, plain_pass, tuned

pytestmark = THIRD_PARTY

HALF_A_STEP = 2.0**-4
"""Three bits of mantissa: the most that rounding takes from a number."""


def test_a_number_is_off_by_half_a_step_at_most_and_the_largest_of_a_row_by_none() -> None:
    x = torch.randn(7, 64) * torch.tensor([1e-6, 1e-3, 1.0, 10.0, 1e3, 1e6, 0.0])[:, None]

    numbers, scale = fp8.quantise([x])
    found = numbers.float() * scale

    large = x.abs() > x.abs().amax(1, keepdim=True) / 1e4
    assert ((found - x).abs()[large] <= HALF_A_STEP * x.abs()[large] * 1.001).all()
    assert torch.allclose(found.abs().amax(1), x.abs().amax(1), rtol=1e-6)


def test_what_is_no_number_stays_none() -> None:
    numbers, scale = fp8.quantise([torch.tensor([[1.0, float("nan")], [1.0, 2.0]])])

    assert (numbers.float() * scale).isnan().any(1).tolist() == [True, False]


def test_a_layer_computes_what_the_scaled_product_does() -> None:
    layer, x = torch.nn.Linear(48, 32, bias=False).requires_grad_(False), torch.randn(16, 48)
    held = Fp8Linear(layer.bfloat16())
    (numbers, scale), (weight, scales) = fp8.quantise([x.bfloat16()]), held.parts

    expected = torch._scaled_mm(
        numbers, weight.view(fp8.FORMAT).t(), scale_a=scale, scale_b=scales[None], out_dtype=torch.bfloat16
    )

    assert torch.allclose(held(x.bfloat16()), expected, rtol=1e-2, atol=1e-3)
    assert (held(x).float() - x @ layer.weight.float().t()).norm() < 0.06 * expected.float().norm()


def test_the_gradient_is_that_of_the_quantised_weight() -> None:
    weight, x = fp8.parts(torch.randn(32, 48)), torch.randn(16, 48, requires_grad=True)
    grad = torch.randn(16, 32)

    (found,) = torch.autograd.grad(frozen_linear(x, weight, 32), x, grad)

    exact = grad @ fp8.matrix(weight, torch.float32)
    assert 1e-3 < (found - exact).norm() / exact.norm() < 0.06
    with fp8.dequantised():
        (same,) = torch.autograd.grad(frozen_linear(x, weight, 32), x, grad)
    assert torch.allclose(same, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi", "mixtral"])
def test_the_fast_path_computes_what_transformers_and_peft_do_with_the_same_weights(family: str) -> None:
    model = tuned(family)
    before = plain_pass(model)
    held = hold_in_fp8(model)
    path = FastPath(model, compiled=False)

    assert held == {"llama": 14, "gemma3_text": 14, "phi": 12, "mixtral": 8}[family]
    assert "frozen weights in FP8" in path.summary
    assert path.slow_linears == 0
    with fp8.dequantised():
        assert_same(model, path)
    assert _apart(fast_pass(model, path), before) < 0.15
    assert _apart(fast_pass(model, path), plain_pass(model)) < 0.05


def _apart(found: tuple[float, dict[str, torch.Tensor]], expected: tuple[float, dict[str, torch.Tensor]]) -> float:
    one, other = (torch.cat([grad.flatten() for grad in each[1].values()]) for each in (found, expected))
    return float((one - other).norm() / other.norm())


def test_what_is_trained_whole_and_the_head_stay_as_they_are() -> None:
    model = tuned("llama", modulesToSave=["down_proj"], targetModules=["q_proj"])

    assert hold_in_fp8(model) == 2 * 6
    assert not any(isinstance(module, Fp8Linear) for module in model.get_output_embeddings().modules())
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "modules_to_save" in name)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for a card that multiplies FP8, and take the fast path."""
    monkeypatch.setattr(fp8_base, "require_card", lambda: None)
    monkeypatch.setattr(fast_choice, "_worth_it", lambda: True)


IN_FP8 = {"quantization": {"type": "fp8"}}


def test_a_whole_run_learns_what_it_learns_without(tmp_path: Path, card: None) -> None:
    plain = train(make_case(tmp_path / "plain", total_steps=9))
    found = train(make_case(tmp_path / "fp8", spec=IN_FP8, total_steps=9))

    assert "frozen weights in FP8" in found.evaluation["training"]["computedBy"]
    assert found.evaluation["training"]["frozenBase"].startswith("FP8; held-out loss before training")
    assert "| Frozen base model | FP8; held-out loss" in (found.run / paths.MODEL_CARD).read_text()
    assert found.losses != plain.losses
    assert found.losses == pytest.approx(plain.losses, rel=0.02)
    assert found.held_out_losses == pytest.approx(plain.held_out_losses, rel=0.02)
    assert found.result.artifacts.keys() == plain.result.artifacts.keys()


def test_a_model_that_does_not_bear_it_is_refused(tmp_path: Path, card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8_base, "BOUND", 1e-9)  # random weights bear anything

    with pytest.raises(TrainerError, match=r"quantization\.type is fp8: .* [\d.]+ in FP8 and [\d.]+ in bf") as refused:
        train(make_case(tmp_path, spec=IN_FP8))

    assert refused.value.code is ExitCode.CONFIG_INVALID


def test_a_machine_without_such_a_card_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="NVIDIA's GPUs") as refused:
        train(make_case(tmp_path, spec=IN_FP8))

    assert refused.value.code is ExitCode.CONFIG_INVALID


def test_a_card_that_does_not_multiply_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8_base, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")

    with pytest.raises(TrainerError, match=r"NVIDIA A100, does not multiply \(resources\.gpuType"):
        fp8_base.require_card()

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    fp8_base.require_card()


@pytest.mark.parametrize(
    ("loss", "in_bfloat16", "said"),
    [
        pytest.param(2.019, 2.0, None, id="within"),
        pytest.param(1.981, 2.0, None, id="lower, within"),
        pytest.param(2.021, 2.0, r"2.0210 in FP8 and 2.0000 in bfloat16, +1.05%", id="above"),
        pytest.param(1.9, 2.0, "-5.00%", id="lower"),
        pytest.param(float("nan"), 2.0, "nan in FP8", id="no number"),
    ],
)
def test_a_loss_may_be_off_by_one_percent(loss: float, in_bfloat16: float, said: str | None) -> None:
    found = too_far(loss, in_bfloat16)

    assert (found is None) is (said is None)
    assert said is None or said in str(found)


def test_some_examples_are_measured_and_one_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8_base, "TOKENS", 10)
    rows: list[dict[str, Any]] = [{"input_ids": [0] * length} for length in (20, 3, 3)]

    assert some(rows) == rows[:1]
    assert some(rows[1:] + rows) == rows[1:]
