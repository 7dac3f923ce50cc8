"""The loss on the tokens that count, and the gradient of their hidden states, without the logits of a whole batch.

Both come from one pass over the vocabulary: the softmax's gradient takes the logits' place in memory, a chunk of tokens
at a time, and is multiplied with the head at once; where the head is trained, with the hidden states as well. The
backward pass has nothing left to compute; TRL's fused head computes every logit a second time there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

LOGITS = 1 << 29
"""Logits that exist at one time."""


@dataclass(frozen=True, slots=True)
class Head:
    """An output head: logits are cap * tanh(scale * (h W^T + bias) / cap)."""

    weight: torch.Tensor
    """(vocabulary, hidden); it gets a gradient if it asks for one, and the bias none."""
    bias: torch.Tensor | None = None
    scale: float = 1.0
    cap: float | None = None


class CountedLoss(torch.autograd.Function):
    """The sum of the losses of tokens, in float32, from their hidden states (tokens, hidden) and targets (tokens,)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, head: Head
    ) -> torch.Tensor:
        """Compute loss and gradients; `weight` is the head's."""
        gradient = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[2] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        size = max(LOGITS // head.weight.shape[0], 1)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = torch.nn.functional.linear(hidden[part], weight, head.bias)
            total += _losses_and_gradient(logits, targets[part], head).sum()
            torch.mm(logits, weight, out=gradient[part])
            if of_weight is not None:
                of_weight.addmm_(logits.T, hidden[part])
            del logits  # the next chunk's would lie beside them
        ctx.save_for_backward(gradient, of_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        """Scale what the forward pass found."""
        gradient, of_weight = ctx.saved_tensors
        scale = grad.to(gradient.dtype)
        return gradient * scale, None, None if of_weight is None else of_weight.mul_(scale), None


def counted_loss(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    """Return the sum of the losses; what lies between may be computed in another number format than the head's."""
    with torch.autocast(hidden.device.type, enabled=False):
        found: torch.Tensor = CountedLoss.apply(  # type: ignore[no-untyped-call]
            hidden.to(head.weight.dtype), targets, head.weight, head
        )
    return found


def _losses_and_gradient(logits: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    """Return the losses; the logits, which are those before scale and cap, become their gradient."""
    if logits.is_cuda:
        from finetune_trainer.fast.kernels.triton_loss import losses_and_gradient

        return losses_and_gradient(logits, targets, scale=head.scale, cap=head.cap)
    values, slope = logits.float() * head.scale, None
    if head.cap:
        values = head.cap * torch.tanh(values / head.cap)
        slope = 1 - (values / head.cap) ** 2
    found = torch.log_softmax(values, dim=-1)
    gradient = found.exp()
    gradient[torch.arange(len(targets)), targets] -= 1
    logits.copy_(gradient * head.scale * (1.0 if slope is None else slope))
    return -found.gather(1, targets[:, None]).squeeze(1)


def head_of(config: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> Head:
    """Return a model's head with the factors that its configuration names, as TRL's fused head reads them."""
    scale = _factor(config)
    return Head(weight, bias, scale, getattr(config, "final_logit_softcapping", None))


def _factor(config: Any) -> float:
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if (found := getattr(config, name, None)) is not None:
            return float(found)
    divided = getattr(config, "logits_scaling", None)
    if divided is None:
        return 1.0
    return float(divided) if config.model_type == "hyperclovax" else 1 / float(divided)
