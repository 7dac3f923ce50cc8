"""FlashAttention-4 for the documents of a flat sequence: kernels in CuTe's Python form, compiled when first used.

On Hopper they have the algorithm of FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608). For that and newer cards,
where the package `flash-attn-4` is installed. What is called is what its own autograd function calls.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from finetune_trainer.fast.kernels.attention_backends import Three, dense
from finetune_trainer.fast.kernels.layout import Layout

_OLDEST = (9, 0)
"""Compute capability: Hopper."""


def is_there() -> bool:
    """Whether it is installed, and made for this process's card."""
    # The package's older versions have the same name.
    installed = find_spec("flash_attn") is not None and find_spec("flash_attn.cute") is not None
    return installed and torch.cuda.get_device_capability() >= _OLDEST


@cache
def _kernels() -> Any:
    return import_module("flash_attn.cute.interface")


class Cute:
    """Documents of any length; tensors as `attention.attend` has them."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the result and the logarithms."""
        out, sums, *_ = _kernels()._flash_attn_fwd(
            *map(dense, (query, key, value)), **self._settings(scale=scale, window=window), return_lse=True
        )
        return out, sums

    def backward(
        self,
        grad: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        sums: torch.Tensor,
        *,
        scale: float,
        window: int,
    ) -> Three:
        """Return the gradients."""
        first, second, third, *_ = _kernels()._flash_attn_bwd(
            *map(dense, (query, key, value)), out, grad, sums, **self._settings(scale=scale, window=window),
        )  # fmt: skip
        return first, second, third

    def _settings(self, *, scale: float, window: int) -> dict[str, Any]:
        starts, longest = self._layout.starts, self._layout.longest
        return {
            "softmax_scale": scale,
            "causal": True,
            "cu_seqlens_q": starts,
            "cu_seqlens_k": starts,
            "max_seqlen_q": longest,
            "max_seqlen_k": longest,
            "window_size_left": window - 1 if window else None,
            "window_size_right": 0 if window else None,
        }
