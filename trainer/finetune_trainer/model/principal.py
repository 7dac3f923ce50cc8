"""Adapters that start as a part of the weights: PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775).

They take W = R + s B₀A₀ apart, freeze R and train B and A. What is trained belongs to R, which nobody has; so the start
B₀, A₀ is kept, every checkpoint has it, and the adapter that is handed out is s(BA - B₀A₀), of twice the rank, on W.

R is rounded to the model's number format. In bfloat16 the model before the first step is therefore nearly the base: of
SmolLM2-135M, rank 16, one text had a loss of 3.083 instead of 3.077. In float32 both are equal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHANGES_THE_BASE = frozenset({"pissa", "olora"})
START = "start.safetensors"
_WEIGHTS, _SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def remember_start(model: Any) -> None:
    """Keep what the adapters are before the first step, in the processor's memory."""
    model.start = {name: tensor.detach().float().cpu().clone() for name, tensor in _pairs(model).items()}


def save_start(model: Any, folder: Path) -> None:
    """Write the start beside the adapter, where there is one."""
    from safetensors.torch import save_file

    if start := getattr(model, "start", None):
        save_file(start, folder / START)


def adopt_start(model: Any, folder: Path) -> None:
    """Make the frozen weights those that a checkpoint's adapters belong to.

    The same machine computes the same start again, and nothing is to be done; on another one singular vectors may
    have other signs.
    """
    import torch
    from safetensors.torch import load_file

    if not (folder / START).is_file():
        return
    theirs = load_file(folder / START)
    if all(torch.equal(tensor, theirs[name]) for name, tensor in model.start.items()):
        return
    for name, layer in _layers(model):
        a, b = (f"{name}.lora_{which}.default.weight" for which in "AB")
        _move(layer, model.start[b] @ model.start[a] - theirs[b] @ theirs[a])
    model.start = theirs


def make_plain(folder: Path) -> None:
    """Turn a saved adapter with its start into one of the unchanged base model; others are left as they are."""
    import torch
    from safetensors.torch import load_file, save_file

    if not (folder / START).is_file():
        return
    weights = load_file(folder / _WEIGHTS)
    for name, tensor in load_file(folder / START).items():
        saved, first = name.replace(".default.", "."), "lora_A" in name
        weights[saved] = torch.cat([weights[saved], tensor if first else -tensor], 0 if first else 1)
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    settings = json.loads((folder / _SETTINGS).read_text())
    settings["r"] *= 2
    # The scale is alpha / rank, or alpha / sqrt(rank): it stays what it was.
    settings["lora_alpha"] *= 2**0.5 if settings["use_rslora"] else 2
    settings["init_lora_weights"] = True
    (folder / _SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (folder / START).unlink()


def _move(layer: Any, product: Any) -> None:
    """Add s times a product of start matrices to the frozen weight."""
    base = layer.get_base_layer()
    change = product.to(base.weight.device) * layer.scaling["default"]
    change = change.T if layer.fan_in_fan_out else change
    base.weight.data = (base.weight.data.float() + change).to(base.weight.dtype)


def _layers(model: Any) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def _pairs(model: Any) -> dict[str, Any]:
    return {name: parameter for name, parameter in model.named_parameters() if "lora_A" in name or "lora_B" in name}
