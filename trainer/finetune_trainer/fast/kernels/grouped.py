"""Linear layers with LoRA on one input as one operation: queries, keys and values.

LoRA's first matrices are one product, and so are their gradients; the gradients of the input are added up inside the
products instead of by kernels between them. Biases and all that comes after stay with the compiler.

Weights are frozen, dense, in 4 bits or in FP8 (`frozen`), and passed one after the other with the number of tensors of
each. Those in FP8 may be one weight with the rows of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from finetune_trainer.fast.kernels import frozen
from finetune_trainer.fast.kernels.nf4 import Parts


@torch.library.custom_op(
    "finetune::grouped",
    mutates_args=(),
    schema="(Tensor x, Tensor[] weights, int[] counts, Tensor a, Tensor[] b) -> (Tensor, Tensor)",
)
def grouped(
    x: torch.Tensor, weights: Parts, counts: Sequence[int], a: torch.Tensor, b: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the layers' results side by side (tokens, all outputs), and the product of x and `a`.

    `a` (all ranks, inputs) has the first matrices one above the other, `b` the second ones (outputs, rank).
    """
    low = x @ a.t()
    rows, ranks = [len(one) for one in b], [one.shape[1] for one in b]
    out = frozen.side_by_side(x, _each(weights, counts), rows)
    for second, mine, rank in zip(b, torch.split(out, rows, 1), torch.split(low, ranks, 1), strict=True):
        mine.addmm_(rank, second.t())
    return out, low


@grouped.register_fake
def _(x: torch.Tensor, weights: Parts, counts: Sequence[int], a: torch.Tensor, b: list[torch.Tensor]) -> Any:
    del weights, counts
    return x.new_empty((x.shape[0], sum(one.shape[0] for one in b))), x.new_empty((x.shape[0], a.shape[0]))


@torch.library.custom_op(
    "finetune::grouped_backward",
    mutates_args=(),
    schema=(
        "(Tensor grad, Tensor x, Tensor low, Tensor[] weights, int[] counts, Tensor a, Tensor[] b)"
        " -> (Tensor, Tensor, Tensor)"
    ),
)
def grouped_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    low: torch.Tensor,
    weights: Parts,
    counts: Sequence[int],
    a: torch.Tensor,
    b: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x, of `a`, and of `b`, flat and one after the other."""
    back, grad_b = torch.empty_like(low), x.new_empty(sum(one.numel() for one in b))
    rows, ranks = [len(one) for one in b], [one.shape[1] for one in b]
    parts = (torch.split(one, ranks, 1) for one in (low, back))
    slots = torch.split(grad_b, [one.numel() for one in b])
    each = torch.split(grad, rows, 1)
    for second, mine, low_part, back_part, slot in zip(b, each, *parts, slots, strict=True):
        torch.mm(mine, second, out=back_part)
        torch.mm(mine.t(), low_part, out=slot.view_as(second))
    frozen_ones = _each(weights, counts)
    grad_x = frozen.backward([grad] if len(frozen_ones) == 1 else each, frozen_ones, x.shape[1])
    grad_x.addmm_(back, a)
    return grad_x, back.t() @ x, grad_b


@grouped_backward.register_fake
def _(grad: torch.Tensor, x: torch.Tensor, low: torch.Tensor, weights: Parts, counts: Any, a: Any, b: Any) -> Any:
    del grad, low, weights, counts
    return torch.empty_like(x), torch.empty_like(a), x.new_empty(sum(one.shape[0] * one.shape[1] for one in b))


def _each(weights: Parts, counts: Sequence[int]) -> list[Parts]:
    ends = list(accumulate(counts))
    return [list(weights[end - count : end]) for end, count in zip(ends, counts, strict=True)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, weights, ctx.counts, a, b = inputs
    ctx.held = len(weights)
    ctx.save_for_backward(x, output[1], a, *weights, *b)


def _gradients(ctx: Any, grad: torch.Tensor, _low: Any) -> tuple[Any, ...]:
    x, low, a, *rest = ctx.saved_tensors
    weights, b = rest[: ctx.held], rest[ctx.held :]
    grad_x, grad_a, flat = grouped_backward(grad.contiguous(), x, low, weights, ctx.counts, a, b)
    parts = flat.split([one.shape[0] * one.shape[1] for one in b])
    each = [part.view(one.shape) for part, one in zip(parts, b, strict=True)]
    return grad_x, [None] * ctx.held, None, grad_a, each


grouped.register_autograd(_gradients, setup_context=_keep)
