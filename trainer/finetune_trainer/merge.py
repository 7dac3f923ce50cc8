"""The weights to serve: the adapters merged into the base model, or all weights after full tuning.

The merge is computed in float32 from the model's own weights, and only its result is rounded; also after QLoRA, whose
4-bit base served training alone. For LoRA the merged model must say what the adapted one says, or the export fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.logs import log
from finetune_trainer.model import load_base
from finetune_trainer.vocabulary import grow_embeddings

TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest one, that merging in float32 may make.

Measured on a 135M model: 6e-5 with a strongly trained adapter, where an absolute 1e-3 would have refused a right merge.
"""
_PROBE_TOKENS = 16
_SHARD = "5GB"
_CPU = torch.device("cpu")


def write_merged(base: Path, adapter: Path, into: Path, *, dtype: str, new_tokens: Sequence[int] = ()) -> None:
    """Merge an adapter into the base model's weights and write them. Raises INTERNAL_ERROR if it is not exact."""
    from peft import PeftModel

    weights = load_base(base, dtype=torch.float32, on=_CPU)
    grow_embeddings(weights, new_tokens)
    model = PeftModel.from_pretrained(weights, str(adapter)).eval()
    vocabulary = model.config.get_text_config().vocab_size
    probe = torch.linspace(0, vocabulary - 1, _PROBE_TOKENS).long().unsqueeze(0)
    expected = _logits(model, probe)
    merged = model.merge_and_unload(safe_merge=True)
    _require_equal(_logits(merged, probe), expected)
    _write(merged, into, dtype=dtype)


def write_full(weights: Path, into: Path, *, dtype: str) -> None:
    """Write fully tuned weights in the wanted number format."""
    _write(load_base(weights, dtype=torch.float32, on=_CPU), into, dtype=dtype)


def _require_equal(logits: torch.Tensor, expected: torch.Tensor) -> None:
    difference = ((logits - expected).abs().max() / expected.abs().max()).item()
    log.info("merged: logits differ by at most %.1e of the largest one", difference)
    if not difference < TOLERANCE:
        raise TrainerError(
            ExitCode.INTERNAL_ERROR,
            f"The merged model's logits differ from the adapted one's by {difference:.3g} of the largest one.",
        )


def _write(model: Any, into: Path, *, dtype: str) -> None:
    model.config.use_cache = True  # off in training
    model.to(getattr(torch, dtype)).save_pretrained(into, max_shard_size=_SHARD)


def _logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens).logits
    return logits
