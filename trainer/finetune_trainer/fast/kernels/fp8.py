"""Products with frozen weights in FP8 (e4m3: 4 bits of exponent, 3 of mantissa; Micikevicius et al. 2022,
arXiv:2209.05433), which Hopper and Ada multiply twice as fast as 16 bits.

A weight has a scale a row, so that its largest number is the format's; what it is multiplied with is quantised where it
is used, with a scale a token. Sums are float32, and the result is in the caller's format.

Backward the card wants the weight with its rows where the columns were. It is turned for each product into a buffer
that all share, and the rows' scales are multiplied into the gradient before that is quantised: gradients are those of
the same quantised numbers as the forward pass's, and a weight takes one byte, not the two of a second copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from finetune_trainer.fast.kernels.nf4 import Parts

EIGHT = 2
"""Number of tensors of such a weight: its numbers, as bytes (rows, columns), and a scale a row (rows,) in float32."""
FORMAT, LARGEST = torch.float8_e4m3fn, 448.0
LEAST = 1e-12
"""Largest number that a row of zeros is taken to have."""
MULTIPLE = 16
"""Both sides of a weight must be multiples of it, or the card does not multiply them."""

_buffers: dict[torch.device, torch.Tensor] = {}
_ones: dict[tuple[torch.device, int], torch.Tensor] = {}
_dequantised = False


def parts(weight: torch.Tensor) -> Parts:
    """Return the tensors of a dense weight (rows, columns) in FP8."""
    eight, scale = quantise([weight])
    return [eight.view(torch.uint8), scale.flatten()]


def in_eight(weights: Sequence[Parts]) -> bool:
    """Whether all weights are in FP8, and are to be multiplied so."""
    return not _dequantised and all(len(weight) == EIGHT for weight in weights)


@contextmanager
def dequantised() -> Iterator[None]:
    """Multiply with the weights' values in the caller's format inside, quantising nothing else.

    Two ways to compute the same can be told apart then: FP8 rounds what differs in the last bit to other numbers.
    """
    global _dequantised  # noqa: PLW0603 - backward passes run in threads of their own
    before, _dequantised = _dequantised, True
    try:
        yield
    finally:
        _dequantised = before


def matrix(weight: Parts, dtype: torch.dtype) -> torch.Tensor:
    """Return the dense matrix."""
    eight, scale = weight
    found = torch.empty(eight.shape, dtype=dtype, device=eight.device)
    return torch.mul(eight.view(FORMAT).to(dtype), scale[:, None], out=found)


def forward(x: torch.Tensor, weights: Sequence[Parts]) -> list[torch.Tensor]:
    """Return x (tokens, columns) times the transpose of each weight (rows, columns)."""
    eight, scale = quantise([x])
    return [_product(eight, scale, numbers.view(FORMAT), scales, x.dtype) for numbers, scales in weights]


def backward(grads: Sequence[torch.Tensor], weights: Sequence[Parts]) -> torch.Tensor:
    """Return the sum of each gradient (tokens, rows) times its weight."""
    eight, scale = quantise(grads, [scales for _, scales in weights])
    turned = _turned([numbers for numbers, _ in weights])
    return _product(eight, scale, turned, _of_ones(turned), grads[0].dtype)


def quantise(
    parts: Sequence[torch.Tensor], scales: Sequence[torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one or two matrices (tokens, width) side by side in FP8, and the scale of each row (tokens, 1) in float32.

    `scales`: what each one's columns are multiplied by before.
    """
    if parts[0].is_cuda:
        from finetune_trainer.fast.kernels.triton_fp8 import quantise as by_kernel

        return by_kernel(parts, scales)
    wide = [part.float() * scale for part, scale in zip(parts, scales or [torch.ones(1)] * len(parts), strict=True)]
    row = torch.cat(wide, dim=1)
    most = row.abs().amax(dim=1, keepdim=True).clamp(min=LEAST)
    return (row * (LARGEST / most)).clamp(-LARGEST, LARGEST).to(FORMAT), most / LARGEST


def forget_buffers() -> None:
    """Give the shared matrices' memory back."""
    _buffers.clear()
    _ones.clear()


def _product(
    eight: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return (tokens, inner) times the transpose of (rows, inner)."""
    if eight.is_cuda:
        return torch._scaled_mm(
            eight, weight.t(), scale_a=scale, scale_b=scales.view(1, -1), out_dtype=dtype, use_fast_accum=True
        )
    # What the card computes, whatever the sizes.
    return ((eight.float() * scale) @ (weight.float() * scales[:, None]).t()).to(dtype)


def _turned(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return weights (rows, columns), one below the other, as (columns, all rows); the next call overwrites it."""
    rows, columns = [len(one) for one in weights], weights[0].shape[1]
    out = _buffer(sum(rows) * columns, weights[0].device).view(columns, sum(rows))
    for weight, place in zip(weights, torch.split(out, rows, dim=1), strict=True):
        if out.is_cuda:
            from finetune_trainer.fast.kernels.triton_fp8 import turn

            turn(weight, place)
        else:
            place.copy_(weight.t())
    return out.view(FORMAT)


def _buffer(size: int, device: torch.device) -> torch.Tensor:
    held = _buffers.get(device)
    if held is None or held.numel() < size:
        held = _buffers[device] = torch.empty(size, dtype=torch.uint8, device=device)
    return held[:size]


def _of_ones(weight: torch.Tensor) -> torch.Tensor:
    key = weight.device, len(weight)
    if key not in _ones:
        _ones[key] = torch.ones(len(weight), device=weight.device)
    return _ones[key]
