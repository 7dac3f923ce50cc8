"""Products with frozen weights, however they are held: dense, in 4 bits (`nf4`) or in FP8 (`fp8`).

A frozen weight is passed as a list of tensors (`nf4.Parts`), whose number says what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from finetune_trainer.fast.kernels import fp8, nf4
from finetune_trainer.fast.kernels.nf4 import Parts


def matrix(weight: Parts, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the dense matrix (rows, columns). Of a quantised one it is overwritten by the next call."""
    if len(weight) == fp8.EIGHT:
        return fp8.matrix(weight, dtype)
    return nf4.matrix(weight, rows, columns, dtype)


def forward(x: torch.Tensor, weights: Sequence[Parts], rows: Sequence[int]) -> list[torch.Tensor]:
    """Return x (tokens, columns) times the transpose of each weight (rows, columns)."""
    if fp8.in_eight(weights):
        return fp8.forward(x, weights)
    return [x @ matrix(weight, size, x.shape[-1], x.dtype).t() for weight, size in zip(weights, rows, strict=True)]


def side_by_side(x: torch.Tensor, weights: Sequence[Parts], rows: Sequence[int]) -> torch.Tensor:
    """Return the same as one matrix (tokens, all rows). Weights in FP8 may be one, with all rows."""
    if len(weights) == 1:
        return forward(x, weights, [sum(rows)])[0]
    out = x.new_empty((x.shape[0], sum(rows)))
    for weight, size, mine in zip(weights, rows, torch.split(out, list(rows), 1), strict=True):
        torch.mm(x, matrix(weight, size, x.shape[1], x.dtype).t(), out=mine)
    return out


def backward(grads: Sequence[torch.Tensor], weights: Sequence[Parts], columns: int) -> torch.Tensor:
    """Return the sum of each gradient (tokens, rows) times its weight (rows, columns)."""
    if fp8.in_eight(weights):
        return fp8.backward(grads, weights)
    first, *others = zip(grads, weights, strict=True)
    found = first[0] @ matrix(first[1], first[0].shape[1], columns, first[0].dtype)
    for grad, weight in others:
        found.addmm_(grad, matrix(weight, grad.shape[1], columns, grad.dtype))
    return found


@torch.library.custom_op(
    "finetune::frozen_linear", mutates_args=(), schema="(Tensor x, Tensor[] weight, int rows) -> Tensor"
)
def frozen_linear(x: torch.Tensor, weight: Parts, rows: int) -> torch.Tensor:
    """Return x (tokens, columns) times the transpose of a frozen matrix (rows, columns)."""
    return forward(x, [weight], [rows])[0]


@frozen_linear.register_fake
def _(x: torch.Tensor, weight: Parts, rows: int) -> Any:
    del weight
    return x.new_empty((x.shape[0], rows))


@torch.library.custom_op(
    "finetune::frozen_linear_backward", mutates_args=(), schema="(Tensor grad, Tensor[] weight, int columns) -> Tensor"
)
def frozen_linear_backward(grad: torch.Tensor, weight: Parts, columns: int) -> torch.Tensor:
    """Return the gradient of x."""
    return backward([grad], [weight], columns)


@frozen_linear_backward.register_fake
def _(grad: torch.Tensor, weight: Parts, columns: int) -> Any:
    del weight
    return grad.new_empty((grad.shape[0], columns))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    del output
    x, weight, _ = inputs
    ctx.columns = x.shape[-1]
    ctx.save_for_backward(*weight)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    weight = list(ctx.saved_tensors)
    return frozen_linear_backward(grad, weight, ctx.columns), [None] * len(weight), None


frozen_linear.register_autograd(_backward, setup_context=_keep)
