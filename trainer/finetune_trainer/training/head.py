"""TRL's fused output head on a CPU: scores of the tokens that the loss is taken on, and of no others.

On a GPU TRL picks them out; elsewhere it scores every position, for compilers that would begin anew with each number of
tokens. A CPU compiles nothing, and prompts and padding would be computed for nothing: a fifth of a step of SmolLM2.
What is added up is the same.
"""

from __future__ import annotations

import torch
from trl.trainer import utils

_picks_on = getattr(utils, "_use_triton", None)
"""TRL 1.15 has none: it scores counted tokens alone everywhere."""


def score_counted_tokens() -> None:
    """Have heads that TRL adds to models in this process score counted tokens alone, on a CPU as well."""
    if _picks_on:
        utils._use_triton = _picks


def _picks(device: torch.device) -> bool:
    return device.type == "cpu" or bool(_picks_on and _picks_on(device))
