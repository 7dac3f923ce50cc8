"""PEFT's layers as the fast path computes them. Each is a class of its own that a layer's object takes on and off again
(`fast.FastPath`), with the parameters and buffers that it has: what PEFT saves, loads and merges is not touched.

Plain operations, so that a compiler fuses what it can: x W^T + (x A^T) B^T, with the copies of the adapters that
`copies.py` makes. A hand-written backward pass of one layer was slower: the compiler could not look into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from torch.nn.functional import linear, pad

from finetune_trainer.fast.copies import ADAPTER, LOW, copied
from finetune_trainer.fast.kernels.fp8 import dequantised
from finetune_trainer.fast.kernels.gated_mlp import ACTIVATIONS, RANKS, TILE_WIDTH, act, gated_mlp
from finetune_trainer.fast.kernels.nf4 import Parts
from finetune_trainer.fast.layers_fp8 import Fp8Linear

PARTS = "_nf4_parts"
"""Where a layer in NF4 holds the tensors of its weight."""
_SAME = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""How far two ways to compute the same may be apart, as a share of the result's norm."""


def is_lora(module: Any) -> bool:
    """Whether it is a layer with an adapter."""
    return isinstance(module, LoraLayer)


def is_plain_lora(layer: Any) -> bool:
    """Whether it is a linear layer with the one adapter that is trained, and nothing that is not computed here."""
    if not is_lora(layer) or isinstance(layer.get_base_layer(), nn.Embedding):
        return False
    usual = layer.active_adapters == [ADAPTER] and not layer.merged and not layer.disable_adapters
    bias = ADAPTER in layer.lora_A and layer.lora_B[ADAPTER].bias is not None
    return usual and ADAPTER in layer.lora_A and ADAPTER not in layer.lora_variant and not bias


def low_rank(layer: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the adapter's part, in the number format of the base layer's."""
    a, b = layer.__dict__[LOW]
    return linear(linear(layer.lora_dropout[ADAPTER](x.to(dtype)), a), b)


class FastLinear(Linear):  # type: ignore[misc]  # untyped
    """LoRA on a dense layer."""

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return base and adapter."""
        base = self.base_layer(x)
        found: torch.Tensor = base + low_rank(self, x, base.dtype)
        return found


def fast_linear(layer: Any) -> type | None:
    """Return the class that a linear layer can take on; None if none computes what it does."""
    base = layer.get_base_layer() if is_lora(layer) else layer
    if type(base).__name__ == "Linear4bit":
        from finetune_trainer.fast.layers_4bit import fast_linear_4bit

        return fast_linear_4bit(layer)
    if not is_plain_lora(layer) or type(layer) is not Linear:
        return None
    copied(layer, dtype_of(layer))
    return FastLinear


class _Gated:
    """What a gated MLP is computed from: `gate_proj`, `up_proj` and `down_proj`, each with LoRA and without bias."""

    _fast_activation: str
    _fast_weights: tuple[Parts, Parts, Parts]
    _fast_rank: int
    gate_proj: Any
    up_proj: Any
    down_proj: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return down(act(gate(x)) * up(x))."""
        gate, up, down = self._fast_weights
        (a_gate, b_gate), (a_up, b_up), (a_down, b_down) = (
            _matrices(layer, self._fast_rank) for layer in (self.gate_proj, self.up_proj, self.down_proj)
        )
        out, *_ = gated_mlp(
            x.to(a_gate.dtype).flatten(0, -2), gate, up, down,
            torch.cat((a_gate, a_up)), b_gate, b_up, a_down, b_down, self._fast_activation,
        )  # fmt: skip
        found: torch.Tensor = out.reshape(*x.shape[:-1], -1)
        return found


_gated_classes: dict[type, type] = {}


def fast_gated_mlp(module: Any) -> type | None:
    """Return the class that a gated MLP can take on; None if it computes something else, as far as numbers tell.

    It must have the three layers' names; that its forward pass is the usual one is tried on random numbers.
    """
    layers: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    activation = _activation(getattr(module, "act_fn", None))
    if activation is None or not all(map(_can_be_gated, layers)):
        return None
    ranks = {layer.r[ADAPTER] for layer in layers}
    rank = next((size for size in RANKS if size >= max(ranks)), None)
    width = layers[0].get_base_layer().out_features
    if rank is None or (width % TILE_WIDTH and _weight(layers[0]).is_cuda):
        return None
    module.__dict__.update(
        _fast_activation=activation, _fast_weights=tuple(frozen(layer) for layer in layers), _fast_rank=rank
    )
    kind = type(module)
    fast = _gated_classes.setdefault(kind, type(f"Fast{kind.__name__}", (_Gated, kind), {}))
    return fast if _computes_the_same(module, fast) else None


def _can_be_gated(layer: Any) -> bool:
    if not is_plain_lora(layer) or LOW not in layer.__dict__:
        return False
    if not isinstance(layer.lora_dropout[ADAPTER], nn.Identity):
        return False
    base = layer.get_base_layer()
    return hasattr(base, "out_features") and base.bias is None


def _weight(layer: Any) -> torch.Tensor:
    found: torch.Tensor = layer.get_base_layer().weight
    return found


def frozen(layer: Any) -> Parts:
    """Return the weight of a layer with LoRA."""
    base = layer.get_base_layer()
    return base.parts if isinstance(base, Fp8Linear) else layer.__dict__.get(PARTS) or [_weight(layer).detach()]


def dtype_of(layer: Any) -> torch.dtype:
    """Return the number format that a layer with LoRA computes in."""
    found: torch.dtype = getattr(layer.base_layer, "compute_dtype", layer.base_layer.weight.dtype)
    return found


def _matrices(layer: Any, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the copies of A (rank, inputs) and B (outputs, rank), padded to the rank that the kernels hold."""
    a, b = layer.__dict__[LOW]
    missing = rank - a.shape[0]
    if missing:
        a, b = pad(a, (0, 0, 0, missing)), pad(b, (0, missing))
    return a, b


def _activation(function: Any) -> str | None:
    """Return an activation's name, found by its values."""
    if not callable(function):
        return None
    x = torch.linspace(-6, 6, 97)
    try:
        values = function(x)
    except (RuntimeError, TypeError):
        return None
    return next((name for name in ACTIVATIONS if torch.equal(act(x, name), values)), None)


@torch.no_grad()
def _computes_the_same(module: Any, fast: type) -> bool:
    weight, dtype = _weight(module.gate_proj), dtype_of(module.gate_proj)
    hidden = module.gate_proj.get_base_layer().in_features
    random = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(1, 64, hidden, generator=random, device=weight.device, dtype=dtype)
    with torch.autocast(weight.device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16), dequantised():
        expected = module(x).float()
        with taken_on({module: fast}):
            found = module(x).float()
    return bool((found - expected).norm() <= _SAME.get(dtype, 0) * expected.norm())


@contextmanager
def taken_on(classes: dict[Any, type]) -> Iterator[None]:
    """Have objects be of other classes inside."""
    before = {module: type(module) for module in classes}
    try:
        for module, fast in classes.items():
            module.__class__ = fast
        yield
    finally:
        for module, plain in before.items():
            module.__class__ = plain
