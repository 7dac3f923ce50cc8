"""Logits to losses and, in place, to the loss's gradient: two walks over the vocabulary, one program a token.

The maximum and the sum of exponentials come from one walk (Milakov & Gimelshein 2018, arXiv:1805.02867).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 8192
_WARPS = 16


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _value(x, scale, cap, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return scale and cap applied."""
    x = x * scale
    if CAPPED:
        x = cap * (2 * tl.sigmoid(2 * x / cap) - 1)
    return x


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _walk(  # type: ignore[no-untyped-def]
    logits, targets, losses, words, scale, cap, CAPPED: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    here = logits + row * words
    c = tl.arange(0, BLOCK)
    target = tl.load(targets + row)
    most = float("-inf")
    total = 0.0
    for start in range(0, words, BLOCK):
        there = start + c < words
        x = _value(tl.load(here + start + c, mask=there, other=0.0).to(tl.float32), scale, cap, CAPPED)
        x = tl.where(there, x, float("-inf"))
        more = tl.maximum(most, tl.max(x, 0))
        total = total * tl.exp(most - more) + tl.sum(tl.exp(x - more), 0)
        most = more
    wanted = _value(tl.load(here + target).to(tl.float32), scale, cap, CAPPED)
    tl.store(losses + row, most + tl.log(total) - wanted)
    tl.debug_barrier()  # the target's logit is read before it is overwritten
    for start in range(0, words, BLOCK):
        there = start + c < words
        x = _value(tl.load(here + start + c, mask=there, other=0.0).to(tl.float32), scale, cap, CAPPED)
        gradient = (tl.exp(x - most) / total - (start + c == target).to(tl.float32)) * scale
        if CAPPED:
            gradient = gradient * (1 - (x / cap) * (x / cap))
        tl.store(here + start + c, gradient.to(logits.dtype.element_ty), mask=there)


def losses_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, *, scale: float, cap: float | None
) -> torch.Tensor:
    """Return the losses (tokens,) in float32; the logits (tokens, words) become their gradient."""
    tokens, words = logits.shape
    losses = torch.empty(tokens, dtype=torch.float32, device=logits.device)
    if tokens:
        _walk[(tokens,)](
            logits, targets, losses, words, scale, cap or 0.0, CAPPED=bool(cap), BLOCK=_BLOCK, num_warps=_WARPS
        )
    return losses
