"""What lies between the products of a gated MLP, in one kernel each way (`gated_mlp` says what is computed).

Tiles of tokens and width, computed in float32 from bfloat16. LoRA's part, rank numbers a token, is a product of tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from finetune_trainer.fast.kernels.gated_mlp import TILE_TOKENS, TILE_WIDTH

_WARPS = 4
_SILU, _GELU_TANH = tl.constexpr(0), tl.constexpr(1)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _act(x, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the activation and its derivative."""
    if KIND == _SILU:
        s = tl.sigmoid(x)
        y = x * s
        d = s + y * (1 - s)
    elif KIND == _GELU_TANH:
        t = 2 * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x)) - 1  # tanh, of twice its argument
        y = 0.5 * x * (1 + t)
        d = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 0.134145 * x * x)
    else:
        e = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        y = x * e
        d = e + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return y, d


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _forward(  # type: ignore[no-untyped-def]
    gated, raised, low, b_gate, b_up, out, width,
    KIND: tl.constexpr, R: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    t = (tl.program_id(1) * BT + tl.arange(0, BT)).to(tl.int64)
    r = tl.arange(0, R)
    at = t[:, None] * width + n[None, :]
    low_gate = tl.load(low + t[:, None] * (2 * R) + r[None, :])
    low_up = tl.load(low + t[:, None] * (2 * R) + R + r[None, :])
    bg = tl.load(b_gate + n[None, :] * R + r[:, None])
    bu = tl.load(b_up + n[None, :] * R + r[:, None])
    g = tl.load(gated + at).to(tl.float32) + tl.dot(low_gate, bg)
    u = tl.load(raised + at).to(tl.float32) + tl.dot(low_up, bu)
    y, _ = _act(g, KIND)
    tl.store(out + at, (y * u).to(out.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _backward(  # type: ignore[no-untyped-def]
    gated, raised, low, b_gate, b_up, inner, back, a_down, grad_gate, grad_up, width,
    KIND: tl.constexpr, R: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    t = (tl.program_id(1) * BT + tl.arange(0, BT)).to(tl.int64)
    r = tl.arange(0, R)
    at = t[:, None] * width + n[None, :]
    low_gate = tl.load(low + t[:, None] * (2 * R) + r[None, :])
    low_up = tl.load(low + t[:, None] * (2 * R) + R + r[None, :])
    bg = tl.load(b_gate + n[None, :] * R + r[:, None])
    bu = tl.load(b_up + n[None, :] * R + r[:, None])
    g = tl.load(gated + at).to(tl.float32) + tl.dot(low_gate, bg)
    u = tl.load(raised + at).to(tl.float32) + tl.dot(low_up, bu)
    down = tl.load(back + t[:, None] * R + r[None, :])
    a = tl.load(a_down + r[:, None] * width + n[None, :])
    d = tl.load(inner + at).to(tl.float32) + tl.dot(down, a)
    y, slope = _act(g, KIND)
    tl.store(inner + at, (y * u).to(inner.dtype.element_ty))
    tl.store(grad_gate + at, (d * u * slope).to(grad_gate.dtype.element_ty))
    tl.store(grad_up + at, (d * y).to(grad_up.dtype.element_ty))


def forward(
    gated: torch.Tensor,
    raised: torch.Tensor,
    low: torch.Tensor,
    b_gate: torch.Tensor,
    b_up: torch.Tensor,
    kind: int,
) -> torch.Tensor:
    """Return act(gate) * up."""
    out = torch.empty_like(gated)
    tokens, width = gated.shape
    _forward[(width // TILE_WIDTH, tokens // TILE_TOKENS)](
        gated, raised, low, b_gate, b_up, out, width,
        KIND=kind, R=b_gate.shape[1], BT=TILE_TOKENS, BN=TILE_WIDTH, num_warps=_WARPS,
    )  # fmt: skip
    return out


def backward(
    gated: torch.Tensor,
    raised: torch.Tensor,
    low: torch.Tensor,
    b_gate: torch.Tensor,
    b_up: torch.Tensor,
    inner: torch.Tensor,
    back: torch.Tensor,
    a_down: torch.Tensor,
    kind: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of gate and up; `inner` becomes act(gate) * up."""
    grad_gate, grad_up = torch.empty_like(gated), torch.empty_like(raised)
    tokens, width = gated.shape
    _backward[(width // TILE_WIDTH, tokens // TILE_TOKENS)](
        gated, raised, low, b_gate, b_up, inner, back, a_down, grad_gate, grad_up, width,
        KIND=kind, R=b_gate.shape[1], BT=TILE_TOKENS, BN=TILE_WIDTH, num_warps=_WARPS,
    )  # fmt: skip
    return grad_gate, grad_up
