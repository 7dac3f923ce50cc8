"""Torch's own attention kernels for the documents of a flat sequence, and plain torch to compare with.

- `Plain`: each document by the formula. On CPUs, and what the tests compare with.
- `Cudnn`: documents of one length are a batch, for which cuDNN's kernels are the fastest on Hopper.
- `Flash`: the variable-length flash kernels that torch ships, or those that take their place
  (`torch.nn.attention.activate_flash_attention_impl`).

Flash kernels pay for every document that is named: bounds are exact, never padded.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from finetune_trainer.fast.kernels.layout import Layout

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Backend(Protocol):
    """One way to compute it; tensors as `attention.attend` has them."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the result and the logarithms of the sums of exponentials."""
        ...

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
        """Return the gradients of query, key and value."""
        ...


class Plain:
    """Document by document, in any number format."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the result; the logarithms are not needed, and zero."""
        out = self._all(query, key, value, scale=scale, window=window)
        return out, query.new_zeros((query.shape[1], query.shape[0]), dtype=torch.float32)

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
        """Compute the probabilities again, and differentiate by hand: inside an operation there is no autograd."""
        del sums
        whole = zip(
            *(torch.split(one, list(self._layout.lengths)) for one in (grad, query, key, value, out)),
            strict=True,
        )
        found = [_document_backward(*part, scale=scale, window=window) for part in whole]
        first, second, third = (torch.cat(parts) for parts in zip(*found, strict=True))
        return first, second, third

    def _all(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float, window: int
    ) -> torch.Tensor:
        parts = zip(*(torch.split(one, list(self._layout.lengths)) for one in (query, key, value)), strict=True)
        return torch.cat([_document(*part, scale=scale, window=window) for part in parts])


def _document(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float, window: int
) -> torch.Tensor:
    weights = _weights(query, key, scale=scale, window=window)
    return torch.einsum("hqk,khd->qhd", weights, _for_each_head(value, query))


def _document_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: float,
    window: int,
) -> Three:
    """Return the gradients (Dao et al. 2022, arXiv:2205.14135, appendix B.2)."""
    weights = _weights(query, key, scale=scale, window=window)
    grad_weights = torch.einsum("qhd,khd->hqk", grad, _for_each_head(value, query))
    scores = weights * (grad_weights - (grad * out).sum(-1).t().unsqueeze(-1)) * scale
    grad_query = torch.einsum("hqk,khd->qhd", scores, _for_each_head(key, query))
    grad_key = torch.einsum("hqk,qhd->khd", scores, query)
    grad_value = torch.einsum("hqk,qhd->khd", weights, grad)
    return grad_query.contiguous(), _of_shared_heads(grad_key, key), _of_shared_heads(grad_value, value)


def _weights(query: torch.Tensor, key: torch.Tensor, *, scale: float, window: int) -> torch.Tensor:
    """Return the attention weights (heads, tokens, tokens)."""
    scores = torch.einsum("qhd,khd->hqk", query, _for_each_head(key, query)) * scale
    at = torch.arange(len(query), device=query.device)
    back = at[:, None] - at[None, :]
    seen = (back >= 0) & (back < (window or len(query)))
    return scores.masked_fill(~seen, float("-inf")).softmax(-1)


def _for_each_head(shared: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    return shared.repeat_interleave(query.shape[1] // shared.shape[1], dim=1)


def _of_shared_heads(grad: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    tokens, heads, width = like.shape
    return grad.reshape(tokens, heads, -1, width).sum(2)


class Flash:
    """Torch's variable-length kernels: bfloat16 and float16, heads of up to 256."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the result and the logarithms."""
        starts, longest = self._layout.starts, self._layout.longest
        out, sums, *_ = torch.ops.aten._flash_attention_forward(
            *map(dense, (query, key, value)), starts, starts, longest, longest, 0.0, True, False,
            scale=scale, **_windows(window),
        )  # fmt: skip
        return out.contiguous(), sums.contiguous()

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
        starts, longest = self._layout.starts, self._layout.longest
        random = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of dropout, which there is none of
        first, second, third = torch.ops.aten._flash_attention_backward(
            grad, *map(dense, (query, key, value)), out, sums, starts, starts, longest, longest, 0.0, True,
            random, random.new_empty(0), scale=scale, **_windows(window),
        )  # fmt: skip
        return first.contiguous(), second.contiguous(), third.contiguous()


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """Return it with the width of a head as its densest dimension."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _windows(window: int) -> dict[str, int]:
    return {"window_size_left": window - 1, "window_size_right": 0} if window else {}


class Cudnn:
    """Documents of one length as a batch."""

    _rest: tuple[Any, ...] = ()
    """What the forward pass returns beside result and logarithms: nothing that depends on the data without dropout."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the result and the logarithms."""
        del window  # as long as a document, or `chosen` has not taken this
        out, sums, *rest = torch.ops.aten._scaled_dot_product_cudnn_attention(
            *map(self._batch, (query, key, value)), None, True, 0.0, True, False, scale=scale
        )
        type(self)._rest = tuple(rest[:6])
        return out.transpose(1, 2).reshape(query.shape), sums.reshape(query.shape[1], query.shape[0])

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
        del window
        queries, keys, most_q, most_k, seed, offset = self._rest
        documents = len(self._layout.lengths)
        logarithms = sums.reshape(documents, query.shape[1], -1, 1)
        found = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            *map(self._batch, (grad, query, key, value, out)), logarithms, seed, offset, None, queries, keys,
            most_q, most_k, 0.0, True, scale=scale,
        )  # fmt: skip
        first, second, third = (
            each.transpose(1, 2).reshape(like.shape) for each, like in zip(found, (query, key, value), strict=True)
        )
        return first, second, third

    def _batch(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(len(self._layout.lengths), -1, *tensor.shape[1:]).transpose(1, 2)
