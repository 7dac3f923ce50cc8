"""The frozen base model in FP8: is there a card for it, and does the model stay what it is?

Models differ in how well their activations bear 3 bits of mantissa, so that each is measured: the held-out loss before
training, when adapters change nothing, in bfloat16 and then in FP8, on the same examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from finetune_contract.exit_codes import ExitCode
from finetune_contract.prepared import Prepared
from finetune_trainer.data.dataset import IGNORED, Row, batches_by_length
from finetune_trainer.errors import TrainerError
from finetune_trainer.fast.kernels.loss import Head, counted_loss, head_of
from finetune_trainer.fast.layers_fp8 import hold_in_fp8
from finetune_trainer.fast.path import causal_of
from finetune_trainer.logs import log
from finetune_trainer.model.build import device, measuring

BOUND = 0.01
"""How far the held-out loss may be off, as a share of that in bfloat16."""
TOKENS = 1 << 16
"""Tokens of the examples that are measured, and a whole one at least: seconds for an 8B model."""
LEAST_CAPABILITY = (8, 9)
"""Ada; its products are the first in FP8."""


def use_fp8(model: Any, rows: Sequence[Row], *, prepared: Prepared) -> str:
    """Have a model with untrained adapters hold its frozen linear layers in FP8; return what that does to its loss.

    Raises CONFIG_INVALID where the card has no such products, where the model has no such layers, and where the loss
    changes by more than the bound.
    """
    require_card()
    measured = some(rows)
    before = loss_of(model, measured, prepared=prepared)
    if not hold_in_fp8(model):
        raise _refused("the model has no linear layers that can be held so")
    after = loss_of(model, measured, prepared=prepared)
    if reason := too_far(after, before):
        raise _refused(reason)
    said = f"FP8; held-out loss before training {after:.4f}, in bfloat16 {before:.4f} ({len(measured)} examples)"
    log.info("frozen base model: %s", said)
    return said


def require_card() -> None:
    """Raise CONFIG_INVALID unless this process's card multiplies FP8."""
    if device().type != "cuda" or torch.version.cuda is None:
        raise _refused("which only NVIDIA's GPUs multiply here, and there is none")
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        name = torch.cuda.get_device_name()
        raise _refused(f"which this GPU, {name}, does not multiply (resources.gpuType: L4, L40S, H100 and newer do)")


def some(rows: Sequence[Row]) -> list[Row]:
    """Return the first examples, up to a number of tokens."""
    ends = accumulate(len(row["input_ids"]) for row in rows)
    return [row for number, (row, end) in enumerate(zip(rows, ends, strict=False)) if end <= TOKENS or not number]


def loss_of(model: Any, rows: Sequence[Row], *, prepared: Prepared) -> float:
    """Return a model's mean loss a counted token, as transformers and PEFT compute the model."""
    resolved, total, tokens = prepared.resolved, 0.0, 0
    head = _head(causal_of(model))
    with measuring(model, resolved.precision):
        for batch in batches_by_length(rows, max_tokens=resolved.micro_batch_size * resolved.max_sequence_length):
            hidden, targets = _counted(model, batch)
            total += counted_loss(hidden, targets, head).item()
            tokens += len(targets)
    return total / max(tokens, 1)


def _counted(model: Any, batch: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hidden states that counted tokens follow, and those tokens. Padding at the end is seen by no one."""
    ids, labels = (
        torch.nn.utils.rnn.pad_sequence([torch.tensor(row[name]) for row in batch], True, filler).to(model.device)
        for name, filler in (("input_ids", 0), ("labels", IGNORED))
    )
    hidden = causal_of(model).base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    counts = labels[:, 1:] != IGNORED
    return hidden[counts], labels[:, 1:][counts]


def _head(causal: Any) -> Head:
    head = causal.get_output_embeddings()
    return head_of(causal.config.get_text_config(), head.weight, getattr(head, "bias", None))


def too_far(loss: float, in_bfloat16: float) -> str | None:
    """Return why a loss in FP8 is off by more than the bound; None if it is not."""
    if not math.isfinite(loss):
        return f"the model's held-out loss is {loss} in FP8, and {in_bfloat16:.4f} in bfloat16"
    off = loss / in_bfloat16 - 1 if in_bfloat16 else math.inf
    if abs(off) <= BOUND:
        return None
    return (
        f"the model's held-out loss before training is {loss:.4f} in FP8 and {in_bfloat16:.4f} in bfloat16, "
        f"{off:+.2%}: at most {BOUND:.0%} is allowed"
    )


def _refused(why: str) -> TrainerError:
    return TrainerError(ExitCode.CONFIG_INVALID, f"quantization.type is fp8: {why}. Remove quantization.")
