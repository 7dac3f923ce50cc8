"""Causal attention within the documents of a flat sequence, as one opaque operation that transformers' layers call.

Which of torch's kernels computes it is settled on the card, by time (`attention_choice`): a compiler neither
sees it nor has to know how many documents there are.
"""

from __future__ import annotations

from typing import Any

import torch

from finetune_trainer.fast.kernels.attention_choice import chosen
from finetune_trainer.fast.kernels.layout import current

NAME = "finetune_documents"
"""The implementation's name, as transformers' configurations say it."""
_ASKED = frozenset({"sliding_window", "is_causal"})
_IGNORED = frozenset(
    {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "cache", "past_key_values"}
)


class NotSupportedError(Exception):
    """A model asks for attention that is not computed here."""


@torch.library.custom_op(
    "finetune::attend",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, float scale, int window) -> (Tensor, Tensor)",
)
def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result and the logarithms of the sums of exponentials.

    Query, key, value and result: (tokens, heads, width), with fewer heads of key and value. The logarithms: as many
    float32 as tokens and heads, as the backend lays them out. `window`: how many tokens one sees, itself included; 0
    for all before it.
    """
    return chosen(current(), query, window).forward(query, key, value, scale=scale, window=window)


@attend.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int) -> Any:
    del key, value, scale, window
    tokens, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((heads, tokens), dtype=torch.float32)


@torch.library.custom_op(
    "finetune::attend_backward",
    mutates_args=(),
    schema=(
        "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor sums, float scale, int window)"
        " -> (Tensor, Tensor, Tensor)"
    ),
)
def attend_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    sums: torch.Tensor,
    scale: float,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of query, key and value."""
    backend = chosen(current(), query, window)
    return backend.backward(grad, query, key, value, out, sums, scale=scale, window=window)


@attend_backward.register_fake
def _(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> Any:
    del grad
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query, key, value, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(query, key, value, *output)


def _backward(ctx: Any, grad: torch.Tensor, _sums: Any) -> tuple[Any, ...]:
    return *attend_backward(grad.contiguous(), *ctx.saved_tensors, ctx.scale, ctx.window), None, None


attend.register_autograd(_backward, setup_context=_keep)


def attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **asked: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' interface has it: (1, heads, tokens, width) in, (1, tokens, heads, width) out.

    Raises NotSupportedError for what a layer asks beyond that: caps of scores, sinks, biases, dropout, masks.
    """
    beyond = sorted(name for name, value in asked.items() if name not in _ASKED | _IGNORED and value is not None)
    if beyond or dropout or attention_mask is not None or asked.get("is_causal") is False:
        raise NotSupportedError(", ".join(beyond) or "attention with dropout, masks or to later tokens")
    if not getattr(module, "is_causal", True):
        raise NotSupportedError("attention to later tokens")
    flat = (one[0].transpose(0, 1) for one in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out, _ = attend(*flat, scale, sliding_window or 0)
    return out.unsqueeze(0), None


def register() -> None:
    """Make the implementation known to transformers; it wants no masks."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention_forward)
