"""4-bit layers whose weights the processes share out.

transformers partitions a model while it loads it, but not what it quantises: such a model is loaded into the node's
memory and shared out from there.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes
import deepspeed
import torch
from bitsandbytes.autograd._functions import MatMul4Bit

from finetune_trainer.model.build import device, hold_trained


def share_quantised(model: Any, settings: dict[str, Any]) -> None:
    """Leave each process a share of a 4-bit model with adapters, one weight after the other.

    The constants of the quantisation, 0.016 bytes a weight, are every process's.
    """
    layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    hold_trained(model, dtype=layers[0].weight.dtype)  # TRL holds them in bfloat16
    for layer in layers:
        layer.__class__ = _SharedLinear4bit
        layer.weight.quant_state.to(device())
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device())
    deepspeed.zero.Init(module=model, config_dict_or_path=settings)


class _SharedLinear4bit(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]  # untyped
    """Linear4bit whose backward pass takes the weight as it is gathered then."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)  # type: ignore[no-any-return]
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        state = self.weight.quant_state
        found: torch.Tensor = _MatMul4Bit.apply(x.to(self.compute_dtype), self.weight, None, bias, state)
        return found.to(x.dtype)


class _MatMul4Bit(MatMul4Bit):  # type: ignore[misc]  # untyped
    """MatMul4Bit that keeps the parameter, not what was gathered of it for the forward pass.

    With that, recomputed or not, each layer's whole weight stayed to its backward pass: 3 GB more for an 8B model.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any, *args: Any) -> Any:
        found = MatMul4Bit.forward(ctx, x, weight, *args)
        ctx.tensors, ctx.weight = (None, None), weight
        return found

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        ctx.tensors = (None, ctx.weight.view(-1, 1))
        found = MatMul4Bit.backward(ctx, grad_output)
        ctx.tensors = (None, None)
        return found
