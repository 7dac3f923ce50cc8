"""Queries, keys and values computed together, by whichever of the three layers is called first.

No attention module is changed: the first layer's forward pass keeps the others' results, and they hand them out if they
are asked about the same tensor. Within a compiled layer that is settled while it is traced.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from finetune_trainer.fast.copies import ADAPTER, LOW
from finetune_trainer.fast.kernels.grouped import grouped
from finetune_trainer.fast.kernels.nf4 import Parts
from finetune_trainer.fast.layers_fp8 import Fp8Linear, merged

NAMES = ("q_proj", "k_proj", "v_proj")
_GROUP, _PLACE = "_fast_group", "_fast_place"


class Group:
    """Layers with LoRA that are asked about one input."""

    def __init__(self, layers: list[Any], weights: list[Parts], dtype: torch.dtype) -> None:
        """`weights` are the frozen ones of each; in FP8 one with the rows of all."""
        self._weights, self._counts = [part for each in weights for part in each], [len(each) for each in weights]
        self._biases = [layer.get_base_layer().bias for layer in layers]
        self._low = [layer.__dict__[LOW] for layer in layers]
        self._rows = [layer.get_base_layer().out_features for layer in layers]
        self._dtype = dtype
        self._of: Any = None
        self._parts: list[Any] = []

    def part(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """Return the result of one of the layers."""
        if self._of is not x or self._parts[place] is None:
            self._of, self._parts = x, self._computed(x)
        found: torch.Tensor = self._parts[place]
        self._parts[place] = None
        if all(one is None for one in self._parts):
            self._of, self._parts = None, []
        return found

    def _computed(self, x: torch.Tensor) -> list[Any]:
        a = torch.cat([first for first, _ in self._low])
        flat = x.to(self._dtype).flatten(0, -2)
        out, _ = grouped(flat, self._weights, self._counts, a, [second for _, second in self._low])
        parts = torch.split(out, self._rows, 1)
        return [
            (one if bias is None else one + bias.to(one.dtype)).unflatten(0, x.shape[:-1])
            for one, bias in zip(parts, self._biases, strict=True)
        ]


class _Grouped:
    """One of the layers; before the class that computes it alone."""

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return base and adapter."""
        group: Group = self.__dict__[_GROUP]
        return group.part(self.__dict__[_PLACE], x)


_classes: dict[type, type] = {}


def group_layers(module: Any, fast: dict[Any, type], *, weights: Any, dtype: Any) -> dict[Any, type]:
    """Return the classes of a module's queries, keys and values that are computed together; none if they cannot be.

    `fast` are the classes that compute each alone; `weights` and `dtype` return a layer's.
    """
    layers: list[Any] = [getattr(module, name, None) for name in NAMES]
    if not all(layer in fast and LOW in layer.__dict__ for layer in layers if layer is not None) or None in layers:
        return {}
    if len({layer.get_base_layer().in_features for layer in layers}) > 1:
        return {}
    if not all(isinstance(layer.lora_dropout[ADAPTER], nn.Identity) for layer in layers):
        return {}
    bases = [layer.get_base_layer() for layer in layers]
    in_eight = all(isinstance(base, Fp8Linear) for base in bases)
    group = Group(layers, [merged(bases)] if in_eight else [weights(layer) for layer in layers], dtype(layers[0]))
    for place, layer in enumerate(layers):
        layer.__dict__.update({_GROUP: group, _PLACE: place})
    return {layer: _classes.setdefault(fast[layer], _grouped_class(fast[layer])) for layer in layers}


def _grouped_class(alone: type) -> type:
    return type(f"Grouped{alone.__name__}", (_Grouped, alone), {})
