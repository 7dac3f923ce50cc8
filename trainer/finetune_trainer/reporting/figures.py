"""What a run costs and how well it uses its GPU: model FLOPs a token, the share of the card's peak (MFU), GPU time.

MFU is that of Chowdhery et al. (2022, arXiv:2204.02311, appendix B): the floating point operations that the step needs,
recomputation not counted, against what the card's matrix units could do in the same time. A frozen weight needs two
passes of three (forward and its input's gradient), a trained one all three; the output head only sees the tokens that
count; a causal token attends to half of its sequence. Pauses between steps are in the time.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune_contract.estimate import adapter_parameters
from finetune_contract.prepared import Prepared
from finetune_contract.run_config import RunConfig
from finetune_contract.shape import ModelShape, UnknownShapeError
from finetune_contract.spec import Lora, Method, Precision

_TFLOPS = (
    ("GB200", 2450.0),
    ("B200", 2250.0),
    ("H200 NVL", 835.0),
    ("H200", 989.4),
    ("GH200", 989.4),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.4),
    ("H800", 989.4),
    ("A100", 311.8),
    ("A800", 311.8),
    ("L40S", 362.1),
    ("L40", 181.1),
    ("L4", 121.0),
    ("A40", 149.7),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("A30", 165.0),
    ("RTX 6000 Ada", 364.2),
    ("RTX A6000", 154.8),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("MI325X", 1307.4),
    ("MI300X", 1307.4),
)
"""Dense bfloat16 TFLOP/s with float32 accumulation by a part of the card's name, as its data sheet has them; where one
name is part of another, the longer stands first.
"""


def peak_flops(card: str, precision: Precision) -> float | None:
    """Return the card's FLOP/s for matrix products; None for a card that is not known, and in float32."""
    if precision is not Precision.BFLOAT16:
        return None
    words = f" {card.replace('-', ' ')} "
    return next((1e12 * peak for name, peak in _TFLOPS if f" {name} " in words), None)


def flops_per_token(
    shape: ModelShape, *, method: Method, lora: Lora, mean_length: float, loss_share: float
) -> float | None:
    """Return the floating point operations that one trained token needs; None for a mixture of experts.

    `mean_length` is in tokens, `loss_share` the part of all tokens that the loss is taken on.
    """
    if shape.experts:  # which of them are active, the shape does not say
        return None
    passes = 3 if method is Method.FULL else 2
    weights = shape.linear_parameters() + loss_share * shape.vocab * shape.hidden
    trained = 0 if method is Method.FULL else adapter_parameters(shape, lora)
    attention = 3 * 2 * mean_length * shape.query * shape.layers
    return 2 * passes * weights + 2 * 3 * trained + attention


@dataclass(frozen=True, slots=True)
class Efficiency:
    """How tokens a second become a share of the peak."""

    flops_per_token: float
    peak_flops: float
    """Of all GPUs together."""

    def mfu(self, tokens_per_second: float) -> float:
        """Return the share of the peak, 0 to 1."""
        return tokens_per_second * self.flops_per_token / self.peak_flops


def efficiency(config: RunConfig, prepared: Prepared, model_folder: Path) -> Efficiency | None:
    """Return what this machine's GPUs and this run's model make of a token; None where either is not known."""
    if not gpus():
        return None
    peak = peak_flops(torch.cuda.get_device_name(), prepared.resolved.precision)
    try:
        shape = ModelShape.from_config_json(json.loads((model_folder / "config.json").read_text(encoding="utf-8")))
    except (UnknownShapeError, OSError, ValueError):
        return None
    data = prepared.dataset
    flops = flops_per_token(
        shape,
        method=config.spec.method,
        lora=config.spec.lora or Lora(),
        mean_length=data.train_tokens / max(data.train_examples, 1),
        loss_share=data.loss_tokens / max(data.train_tokens, 1),
    )
    return Efficiency(flops, gpus() * peak) if flops and peak else None


def gpus() -> int:
    """Return the GPUs that the run trains on: one a process."""
    return int(os.environ.get("WORLD_SIZE", "1")) if torch.cuda.is_available() else 0


class GpuClock:
    """GPU time of a run: what the attempts before had used at the checkpoint, and this one since its start."""

    def __init__(self, *, gpus: int, before: float = 0.0) -> None:
        self._gpus, self._before, self._start = gpus, before, time.monotonic()

    def carry(self, before: float) -> None:
        """Add what the checkpoint that the run goes on from had cost."""
        self._before = before

    def seconds(self) -> float | None:
        """Return GPU-seconds so far; None without a GPU."""
        return self._before + self._gpus * (time.monotonic() - self._start) if self._gpus else None
