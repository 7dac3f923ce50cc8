"""Compares Triton's kernels with plain torch in Triton's interpreter: TRITON_INTERPRET=1 python THIS."""

from __future__ import annotations

from itertools import product

import torch

from finetune_trainer.fast.kernels import (
    fp8,
    gated_mlp,
    loss,
    nf4,
    triton_fp8,
    triton_gated,
    triton_loss,
    triton_nf4,
)

TOKENS, WIDTH, RANK = 64, 128, 16
CLOSE = 1e-5


def gated() -> None:
    """Compare what lies between the products of a gated MLP, forward and back."""
    gate, up, inner = (torch.randn(TOKENS, WIDTH) for _ in range(3))
    low, back, a_down = torch.randn(TOKENS, 2 * RANK), torch.randn(TOKENS, RANK), 0.1 * torch.randn(RANK, WIDTH)
    b_gate, b_up = (0.1 * torch.randn(WIDTH, RANK) for _ in range(2))
    for (kind, name), walking in product(enumerate(gated_mlp.ACTIVATIONS), (False, True)):
        triton_gated.walks = lambda *_, walking=walking: walking
        _same(
            triton_gated.forward(gate, up, low, b_gate, b_up, kind),
            gated_mlp._forward(gate, up, low, b_gate, b_up, name),
        )
        mine, plain = inner.clone(), inner.clone()
        found = triton_gated.backward(gate, up, low, b_gate, b_up, mine, back, a_down, kind)
        expected = gated_mlp._backward(gate, up, low, b_gate, b_up, plain, back, a_down, name)
        for one, other in zip((*found, mine), (*expected, plain), strict=True):
            _same(one, other)


def losses() -> None:
    """Compare losses and the gradient in the logits' place, over more words than a block holds."""
    logits, targets = torch.randn(5, 20000), torch.randint(0, 20000, (5,))
    for cap in (None, 5.0):
        mine, plain = logits.clone(), logits.clone()
        found = triton_loss.losses_and_gradient(mine, targets, scale=0.5, cap=cap)
        _same(found, loss._losses_and_gradient(plain, targets, loss.Head(torch.empty(0), scale=0.5, cap=cap)))
        _same(mine, plain)


def four_bits() -> None:
    """Compare the matrices: plain torch's is bitsandbytes' own, bit for bit."""
    import bitsandbytes.functional as bnb

    for nested in (True, False):
        packed, state = bnb.quantize_4bit(torch.randn(96, 128), quant_type="nf4", compress_statistics=nested)
        packed.quant_state = state
        parts = nf4.parts(packed)
        if parts is None:
            raise AssertionError
        out = torch.empty(96 * 128)
        triton_nf4.dequantise(parts, out)
        expected = nf4.matrix(parts, 96, 128, torch.float32)
        _same(out.view(96, 128), expected)
        if not torch.equal(expected, bnb.dequantize_4bit(packed, state)):
            raise AssertionError


def eight_bits() -> None:
    """Compare the numbers in FP8, of rows apart, side by side and scaled, and a matrix turned round."""
    wide, other = torch.randn(5, 3 * 48), 20 * torch.randn(5, 72)
    for parts, scales in (
        ([wide[:, :48]], None),
        ([wide[:, 48:96]], [torch.rand(48)]),
        ([wide[:, 96:], other], [torch.rand(48), torch.rand(72)]),
    ):
        (numbers, scale), (expected, scale_expected) = triton_fp8.quantise(parts, scales), fp8.quantise(parts, scales)
        _same(scale, scale_expected)
        # What is rounded up to a power of two the interpreter, no card, makes half of it: a carry lost.
        right = torch.frexp(expected.float()).mantissa.abs() != 0.5
        _same(numbers.float()[right], expected.float()[right])
    matrix = torch.randint(0, 255, (200, 130), dtype=torch.uint8)
    out = torch.zeros((130, 300), dtype=torch.uint8)
    triton_fp8.turn(matrix, out[:, 50:250])
    _same(out, torch.nn.functional.pad(matrix.t(), (50, 50)))


def _same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=CLOSE)


if __name__ == "__main__":
    torch.manual_seed(0)
    for name, check in (("gated", gated), ("loss", losses), ("nf4", four_bits), ("fp8", eight_bits)):
        check()
        print(name)
