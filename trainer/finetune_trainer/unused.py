"""Installed libraries that a run does not use, hidden from those that would load them at their own import.

PEFT loads bitsandbytes, which has torch's compiler load, and TRL loads wandb: together a quarter of a train stage's
start (17.6 to 13.5 s of a slow core), and wandb's empty folders are left where a rank ends. What the module table holds
as None is "not installed", as the import system has it.
"""

from __future__ import annotations

import sys

from finetune_contract.run_config import RunConfig
from finetune_contract.spec import Method, Optimizer

_OF_TORCH = {Optimizer.ADAMW, Optimizer.ADAFACTOR}
"""Optimizers that are not bitsandbytes'."""


def hide(*names: str) -> None:
    """Have the import system say that these are not installed; what is loaded already stays."""
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # what the import system itself puts there


def unused(config: RunConfig) -> tuple[str, ...]:
    """Return the libraries that training by this configuration does not use."""
    spec = config.spec
    quantised = spec.method is Method.QLORA or spec.hyperparameters.optimizer not in _OF_TORCH
    tracked = spec.tracking is not None and spec.tracking.wandb is not None
    return (*(() if quantised else ("bitsandbytes",)), *(() if tracked else ("wandb",)))
