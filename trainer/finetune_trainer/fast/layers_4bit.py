"""PEFT's and bitsandbytes' layers in NF4 as the fast path computes them: apart, since only QLoRA has bitsandbytes."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch
from peft.tuners.lora.bnb import Linear4bit

from finetune_trainer.fast.copies import copied
from finetune_trainer.fast.kernels.frozen import frozen_linear
from finetune_trainer.fast.kernels.nf4 import parts
from finetune_trainer.fast.layers import PARTS, dtype_of, is_lora, is_plain_lora, low_rank


class FastLinear4bit(Linear4bit):  # type: ignore[misc]  # untyped
    """LoRA on a layer in NF4."""

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return base and adapter."""
        base, dtype = self.base_layer, self.base_layer.compute_dtype
        flat = x.to(dtype).flatten(0, -2)
        out = frozen_linear(flat, getattr(self, PARTS), base.out_features)
        if base.bias is not None:
            out = out + base.bias.to(dtype)
        found: torch.Tensor = (out + low_rank(self, flat, dtype)).reshape(*x.shape[:-1], -1)
        return found


class FastFrozen4bit(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]  # untyped
    """A layer in NF4 without an adapter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        out = frozen_linear(x.to(self.compute_dtype).flatten(0, -2), getattr(self, PARTS), self.out_features)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        found: torch.Tensor = out.reshape(*x.shape[:-1], -1)
        return found


def fast_linear_4bit(layer: Any) -> type | None:
    """Return the class that a layer in 4 bits can take on, and have it hold its weight's tensors."""
    base, kind = (layer.get_base_layer(), Linear4bit) if is_lora(layer) else (layer, bitsandbytes.nn.Linear4bit)
    found = parts(base.weight)
    if found is None or type(layer) is not kind or (is_lora(layer) and not is_plain_lora(layer)):
        return None
    layer.__dict__[PARTS] = found
    if is_lora(layer):
        copied(layer, dtype_of(layer))
    return FastLinear4bit if is_lora(layer) else FastFrozen4bit
