"""Linear layers whose frozen weight is held in FP8, in the place of torch's: with the fast path or without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from finetune_trainer.fast.kernels import fp8
from finetune_trainer.fast.kernels.frozen import frozen_linear
from finetune_trainer.fast.kernels.nf4 import Parts

_ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
"""A mixture's choice of experts: small, and not to be rounded."""

_UNTRAINED = "original_module"
"""What PEFT keeps of a module that is trained whole."""


class Fp8Linear(nn.Module):
    """A linear layer that is not trained, its weight in FP8 (`kernels.fp8`)."""

    def __init__(self, layer: nn.Linear) -> None:
        """Take a layer's place; its bias stays as it is."""
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.compute_dtype = layer.weight.dtype
        self.bias = layer.bias
        numbers, scale = fp8.parts(layer.weight.detach())
        self.weight = nn.Parameter(numbers, requires_grad=False)
        """As bytes, which nobody casts and every library can send."""
        self.scale = nn.Parameter(scale, requires_grad=False)

    @property
    def parts(self) -> Parts:
        """The tensors of the weight, as products take them."""
        return [self.weight, self.scale]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        out = frozen_linear(x.to(self.compute_dtype).flatten(0, -2), [self.weight, self.scale], self.out_features)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        found: torch.Tensor = out.reshape(*x.shape[:-1], -1)
        return found

    def extra_repr(self) -> str:
        """Say what it is."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def hold_in_fp8(model: Any) -> int:
    """Have a model with adapters hold its frozen linear layers in FP8, one after the other; return how many.

    What is trained beside the adapters stays as it is, and so do the head, embeddings, routers and layers whose sides
    are no multiples of 16.
    """
    places = list(_frozen_linears(model))
    for parent, name in places:
        setattr(parent, name, Fp8Linear(getattr(parent, name)))  # the layer before is let go of
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return len(places)


def is_held_in_fp8(model: Any) -> bool:
    """Whether any layer is."""
    return any(isinstance(module, Fp8Linear) for module in model.modules())


def _frozen_linears(model: Any) -> Iterator[tuple[nn.Module, str]]:
    """Yield the module and the name that each is at."""
    head = model.get_output_embeddings()
    for path, parent in model.named_modules():
        for name, layer in parent.named_children():
            called = path.rsplit(".", 1)[-1] if name == "base_layer" else name
            left_out = layer is head or called in _ROUTERS or name == _UNTRAINED
            if type(layer) is nn.Linear and not left_out and _can_be_held(layer):
                yield parent, name


def _can_be_held(layer: nn.Linear) -> bool:
    return not layer.weight.requires_grad and not any(size % fp8.MULTIPLE for size in layer.weight.shape)


def merged(layers: Sequence[Fp8Linear]) -> Parts:
    """Have layers on one input hold parts of one weight, with the rows of all; return that."""
    numbers = torch.cat([layer.weight for layer in layers])
    scale = torch.cat([layer.scale for layer in layers])
    rows = [layer.out_features for layer in layers]
    for layer, mine, factors in zip(layers, torch.split(numbers, rows), torch.split(scale, rows), strict=True):
        layer.weight.data, layer.scale.data = mine, factors
    return [numbers, scale]
