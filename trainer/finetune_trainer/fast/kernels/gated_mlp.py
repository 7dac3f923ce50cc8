"""A gated MLP with LoRA on its three layers as one operation: down(act(gate(x)) * up(x)).

What PEFT computes in 15 operations takes three large products forward and three backward, with everything between in
two kernels that read each number once: LoRA's own part of gate and up is added where their activation is computed, and
of what is as wide as the MLP only gate and up themselves are kept; their product is computed again on the way back.

Weights are frozen, dense, in 4 bits or in FP8 (`frozen`). A pair of LoRA matrices is `a` (rank, inputs) and `b`
(outputs, rank), its scale multiplied into one of them; both gradients are those of what is passed.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from finetune_trainer.fast.kernels import frozen
from finetune_trainer.fast.kernels.nf4 import Parts

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")
"""By name: x * sigmoid(x), and GELU by tanh and by erf (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2)."""
TILE_TOKENS, TILE_WIDTH = 32, 64
"""Tokens and numbers of the MLP's width must be multiples of these on a GPU."""
_TANH, _CUBE = (2 / math.pi) ** 0.5, 0.044715
RANKS = (16, 32, 64)
"""Ranks that the kernels hold; others are padded with zeros to the next."""

_SHARED = (
    "Tensor[] gate, Tensor[] up, Tensor[] down, Tensor a, Tensor b_gate, Tensor b_up, Tensor a_down, Tensor b_down"
)


@torch.library.custom_op(
    "finetune::gated_mlp",
    mutates_args=(),
    schema=f"(Tensor x, {_SHARED}, str activation) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def gated_mlp(
    x: torch.Tensor,
    gate: Parts,
    up: Parts,
    down: Parts,
    a: torch.Tensor,
    b_gate: torch.Tensor,
    b_up: torch.Tensor,
    a_down: torch.Tensor,
    b_down: torch.Tensor,
    activation: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the result for x (tokens, hidden), and what the backward pass needs.

    `a` are gate's and up's, one above the other. What is kept: gate and up without their LoRA (tokens, width), and the
    two products of rank (tokens, 2 rank) and (tokens, rank).
    """
    hidden, width = x.shape[-1], b_gate.shape[0]
    low = x @ a.t()
    gated, raised = frozen.forward(x, (gate, up), (width, width))
    inner = _forward(gated, raised, low, b_gate, b_up, activation)
    low_down = inner @ a_down.t()
    (out,) = frozen.forward(inner, (down,), (hidden,))
    out.addmm_(low_down, b_down.t())
    return out, gated, raised, low, low_down


@gated_mlp.register_fake
def _(x: torch.Tensor, gate: Parts, up: Parts, down: Parts, a: torch.Tensor, b_gate: torch.Tensor, *rest: Any) -> Any:
    del gate, up, down
    tokens, (_, a_down, *_) = x.shape[0], rest
    wide = (x.new_empty((tokens, b_gate.shape[0])) for _ in range(2))
    return torch.empty_like(x), *wide, x.new_empty((tokens, a.shape[0])), x.new_empty((tokens, a_down.shape[0]))


@torch.library.custom_op(
    "finetune::gated_mlp_backward",
    mutates_args=(),
    schema=(
        f"(Tensor grad, Tensor x, Tensor gated, Tensor raised, Tensor low, Tensor low_down, {_SHARED}, str activation)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
def gated_mlp_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    gated: torch.Tensor,
    raised: torch.Tensor,
    low: torch.Tensor,
    low_down: torch.Tensor,
    gate: Parts,
    up: Parts,
    down: Parts,
    a: torch.Tensor,
    b_gate: torch.Tensor,
    b_up: torch.Tensor,
    a_down: torch.Tensor,
    b_down: torch.Tensor,
    activation: str,
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of x, a, b_gate, b_up, a_down and b_down."""
    (width, rank), hidden = b_gate.shape, x.shape[-1]
    back = grad @ b_down
    inner = frozen.backward((grad,), (down,), width)  # its gradient, without LoRA's part; the kernel puts it itself
    gated, raised, low_back = _backward(gated, raised, low, b_gate, b_up, inner, back, a_down, activation)
    grad_x = frozen.backward((gated, raised), (gate, up), hidden)
    grad_x.addmm_(low_back, a)
    low_gate, low_up = torch.split(low, rank, dim=1)
    return (
        grad_x,
        low_back.t() @ x,
        gated.t() @ low_gate,
        raised.t() @ low_up,
        back.t() @ inner,
        grad.t() @ low_down,
    )


@gated_mlp_backward.register_fake
def _(grad: torch.Tensor, x: torch.Tensor, *rest: Any) -> Any:
    del grad
    return tuple(torch.empty_like(one) for one in (x, *rest[7:12]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, gate, up, down, *low, ctx.activation = inputs
    _, *kept = output
    ctx.counts = [len(one) for one in (gate, up, down)]
    ctx.save_for_backward(x, *kept, *gate, *up, *down, *low)


def _gradients(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    x, gated, raised, low, low_down, *rest = ctx.saved_tensors
    weights = []
    for count in ctx.counts:
        weights.append(rest[:count])
        rest = rest[count:]
    found = gated_mlp_backward(grad.contiguous(), x, gated, raised, low, low_down, *weights, *rest, ctx.activation)
    return found[0], *([None] * count for count in ctx.counts), *found[1:], None


gated_mlp.register_autograd(_gradients, setup_context=_keep)


def _forward(
    gated: torch.Tensor,
    raised: torch.Tensor,
    low: torch.Tensor,
    b_gate: torch.Tensor,
    b_up: torch.Tensor,
    activation: str,
) -> torch.Tensor:
    """Return act(gate) * up, LoRA's parts added to both."""
    if gated.is_cuda:
        from finetune_trainer.fast.kernels.triton_gated import forward

        return forward(gated, raised, low, b_gate, b_up, ACTIVATIONS.index(activation))
    low_gate, low_up = torch.split(low, b_gate.shape[1], dim=1)
    found: torch.Tensor = act(gated + low_gate @ b_gate.t(), activation) * (raised + low_up @ b_up.t())
    return found


def _backward(
    gated: torch.Tensor,
    raised: torch.Tensor,
    low: torch.Tensor,
    b_gate: torch.Tensor,
    b_up: torch.Tensor,
    inner: torch.Tensor,
    back: torch.Tensor,
    a_down: torch.Tensor,
    activation: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of gate and up, and of `low`; `inner`, that of their product, becomes the product itself."""
    if gated.is_cuda:
        from finetune_trainer.fast.kernels.triton_gated import backward

        return backward(gated, raised, low, b_gate, b_up, inner, back, a_down, ACTIVATIONS.index(activation))
    low_gate, low_up = torch.split(low, b_gate.shape[1], dim=1)
    gate, up = gated + low_gate @ b_gate.t(), raised + low_up @ b_up.t()
    grad = inner + back @ a_down
    value = act(gate, activation)
    inner.copy_(value * up)
    grad_gate, grad_up = grad * up * _slope(gate, activation), grad * value
    return grad_gate, grad_up, torch.cat((grad_gate @ b_gate, grad_up @ b_up), dim=1)


def act(x: torch.Tensor, activation: str) -> torch.Tensor:
    """Return an activation by its name here."""
    if activation == "silu":
        return torch.nn.functional.silu(x)
    return torch.nn.functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def _slope(x: torch.Tensor, activation: str) -> torch.Tensor:
    """Return an activation's derivative."""
    if activation == "silu":
        s: torch.Tensor = torch.sigmoid(x)
        return s * (1 + x * (1 - s))
    if activation == "gelu_tanh":
        t = torch.tanh(_TANH * (x + _CUBE * x * x * x))
        inner: torch.Tensor = _TANH * (1 + 3 * _CUBE * x * x)
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner
    density: torch.Tensor = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * density
