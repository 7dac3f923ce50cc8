"""The optimizers by transformers' names, and learning rates that differ between an adapter's two matrices."""

from __future__ import annotations

from typing import Any

from finetune_contract.spec import Optimizer

_NAMES = {
    Optimizer.ADAMW: "adamw_torch",
    Optimizer.ADAMW_8BIT: "adamw_8bit",
    Optimizer.PAGED_ADAMW_8BIT: "paged_adamw_8bit",
    Optimizer.PAGED_ADAMW_32BIT: "paged_adamw_32bit",
    Optimizer.LION_8BIT: "lion_8bit",
    Optimizer.ADAFACTOR: "adafactor",
}
_FUSED = "adamw_torch_fused"
_UNPAGED = {Optimizer.PAGED_ADAMW_8BIT: Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_32BIT: Optimizer.ADAMW}
"""What pages between a GPU's memory and the node's is on a CPU what it is without pages."""


def transformers_name(optimizer: Optimizer, *, on_gpu: bool) -> str:
    """Return the value of `TrainingArguments.optim`."""
    if on_gpu:
        return _FUSED if optimizer is Optimizer.ADAMW else _NAMES[optimizer]
    return _NAMES[_UNPAGED.get(optimizer, optimizer)]


def optimizer_called(name: str) -> Optimizer:
    """Return the optimizer that `TrainingArguments.optim` names."""
    names = {**{value: key for key, value in _NAMES.items()}, _FUSED: Optimizer.ADAMW}
    return names[str(getattr(name, "value", name))]


def raise_second_rates(optimizer: Any, model: Any, *, ratio: float) -> None:
    """Give the adapters' B matrices, which start as zero, a multiple of the others' learning rate (LoRA+).

    Hayou et al. 2024 (arXiv:2402.12354) show that with equal rates one of the two matrices hardly learns in wide
    models.
    """
    second = {id(parameter) for name, parameter in model.named_parameters() if "lora_B" in name}
    for group in list(optimizer.param_groups):
        raised = [parameter for parameter in group["params"] if id(parameter) in second]
        if raised:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in second]
            optimizer.add_param_group({**group, "params": raised, "lr": group["lr"] * ratio})
