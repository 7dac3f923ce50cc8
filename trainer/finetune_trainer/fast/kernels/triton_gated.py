"""What lies between the products of a gated MLP, in one kernel each way (`gated_mlp` says what is computed).

Tiles of tokens and width, computed in float32 from bfloat16. LoRA's part, rank numbers a token, is a product of tiles.
Backward there are two: one program a tile, or where there are tokens enough for all multiprocessors one that walks over
the width, and has the products of the gradients with LoRA's matrices when it is through.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from finetune_trainer.fast.kernels.gated_mlp import TILE_TOKENS, TILE_WIDTH

_WARPS = 4
_WALK_TOKENS, _WALK_WIDTH, _WALK_STAGES = 64, 64, 3
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


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _walk_backward(  # type: ignore[no-untyped-def]
    gated, raised, low, b_gate, b_up, inner, back, a_down, grad_gate, grad_up, low_back, width,
    KIND: tl.constexpr, R: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    t = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    r = tl.arange(0, R)
    low_gate = tl.load(low + t[:, None] * (2 * R) + r[None, :])
    low_up = tl.load(low + t[:, None] * (2 * R) + R + r[None, :])
    down = tl.load(back + t[:, None] * R + r[None, :])
    back_gate = tl.zeros((BT, R), tl.float32)
    back_up = tl.zeros((BT, R), tl.float32)
    for start in tl.range(0, width, BN, num_stages=STAGES):
        n = start + tl.arange(0, BN)
        at = t[:, None] * width + n[None, :]
        bg = tl.load(b_gate + n[:, None] * R + r[None, :])
        bu = tl.load(b_up + n[:, None] * R + r[None, :])
        a = tl.load(a_down + r[:, None] * width + n[None, :])
        g = tl.load(gated + at).to(tl.float32) + tl.dot(low_gate, tl.trans(bg))
        u = tl.load(raised + at).to(tl.float32) + tl.dot(low_up, tl.trans(bu))
        d = tl.load(inner + at).to(tl.float32) + tl.dot(down, a)
        y, slope = _act(g, KIND)
        tl.store(inner + at, (y * u).to(inner.dtype.element_ty))
        of_gate = (d * u * slope).to(grad_gate.dtype.element_ty)
        of_up = (d * y).to(grad_up.dtype.element_ty)
        tl.store(grad_gate + at, of_gate)
        tl.store(grad_up + at, of_up)
        back_gate = tl.dot(of_gate, bg, back_gate)
        back_up = tl.dot(of_up, bu, back_up)
    to = low_back + t[:, None] * (2 * R) + r[None, :]
    tl.store(to, back_gate.to(low_back.dtype.element_ty))
    tl.store(to + R, back_up.to(low_back.dtype.element_ty))


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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of gate and up, and of the products of rank; `inner` becomes act(gate) * up."""
    grad_gate, grad_up, low_back = torch.empty_like(gated), torch.empty_like(raised), torch.empty_like(low)
    (tokens, width), rank = gated.shape, b_gate.shape[1]
    if walks(tokens, gated.device):
        _walk_backward[(tokens // _WALK_TOKENS,)](
            gated, raised, low, b_gate, b_up, inner, back, a_down, grad_gate, grad_up, low_back, width,
            KIND=kind, R=rank, BT=_WALK_TOKENS, BN=_WALK_WIDTH, STAGES=_WALK_STAGES, num_warps=_WARPS,
        )  # fmt: skip
        return grad_gate, grad_up, low_back
    _backward[(width // TILE_WIDTH, tokens // TILE_TOKENS)](
        gated, raised, low, b_gate, b_up, inner, back, a_down, grad_gate, grad_up, width,
        KIND=kind, R=rank, BT=TILE_TOKENS, BN=TILE_WIDTH, num_warps=_WARPS,
    )  # fmt: skip
    torch.mm(grad_gate, b_gate, out=low_back[:, :rank])
    torch.mm(grad_up, b_up, out=low_back[:, rank:])
    return grad_gate, grad_up, low_back


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def walks(tokens: int, device: torch.device) -> bool:
    """Whether there are tokens enough for programs that walk over the width."""
    blocks, rest = divmod(tokens, _WALK_TOKENS)
    return device.type == "cuda" and not rest and 4 * blocks >= 7 * _multiprocessors(device)
