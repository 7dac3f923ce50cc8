"""TRL's head over the vocabulary, on a CPU over the tokens that count alone.

TRL scores them alone where Triton runs, and elsewhere every position: another number of tokens would be another
compilation there. Nothing is compiled on a CPU, and with short answers to longer prompts the head is a third of a step.
"""

from __future__ import annotations

import torch
from trl.kernels.chunked_logprob import _use_triton
from trl.trainer import utils


def score_counted_tokens_alone() -> None:
    """Make TRL's fused head do so from now on; it asks this function of its module and nothing else about it."""
    utils._use_triton = _scores_them_alone


def _scores_them_alone(device: torch.device) -> bool:
    return device.type == "cpu" or bool(_use_triton(device))
