"""The best weights so far: a folder beside those that training goes on with, and a record of their step and loss."""

from __future__ import annotations

import shutil
from pathlib import Path

from finetune_contract.model import Model

BEST = "best"
BEST_RECORD = "best.json"


class Best(Model):
    """best.json: the step with the lowest held-out loss so far; its weights lie in `best/`."""

    step: int
    loss: float


def move_best(checkpoint: Path, into: Path) -> None:
    """Take the best weights out of a restored checkpoint."""
    source = checkpoint / BEST
    if source.is_dir():
        source.rename(into)
    else:  # the checkpoint's own weights are the best ones
        shutil.copytree(checkpoint, into)
