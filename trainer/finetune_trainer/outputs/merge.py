"""The weights to serve: the adapters merged into base weights, or all weights after full tuning.

The merge is computed in float32 and only its result is rounded. After LoRA the base is the model's own weights. After
QLoRA it is the 4-bit base that the adapter was trained on, back in 16 bit, unless the user asks for the model's own
weights (docs/adr/0008-merged-weights.md). Either way the merged model must say what base and adapter say together,
before and after rounding, or the export fails and nothing is uploaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from finetune_contract.exit_codes import ExitCode
from finetune_contract.output_spec import Merged
from finetune_contract.spec import Quantization
from finetune_trainer.errors import TrainerError
from finetune_trainer.logs import log
from finetune_trainer.model.build import load_base
from finetune_trainer.model.vocabulary import grow_embeddings

TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest one, that merging in float32 may make.

Measured on a 135M model: 6e-5 with a strongly trained adapter, where an absolute 1e-3 would have refused a right merge.
"""
DIVERGENCE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-2}
"""Largest mean divergence (KL, nats a token) from base and adapter that rounding to this type may make: on a 135M model
bfloat16 makes 1.5e-3.
"""
QUANTIZED_DIVERGENCE = 0.1
"""The same between the 4-bit base with its adapter, computed as in training, and the merged weights: measured 5e-3."""
_PROBE_TOKENS = 64
_CPU = torch.device("cpu")


def write_merged(
    base: Path,
    adapter: Path,
    into: Path,
    *,
    settings: Merged,
    quantization: Quantization | None = None,
    trained_in: torch.dtype = torch.bfloat16,
    new_tokens: Sequence[int] = (),
) -> None:
    """Merge an adapter and write the weights. With `quantization`, into the base as it was quantised for training.

    Raises INTERNAL_ERROR if merged and adapted model differ.
    """
    from peft import PeftModel

    if quantization:
        weights, as_trained = _dequantized(base, adapter, quantization, dtype=trained_in, new_tokens=new_tokens)
    else:
        weights, as_trained = load_base(base, dtype=torch.float32, on=_CPU), None
        grow_embeddings(weights, new_tokens)
    model = PeftModel.from_pretrained(weights, str(adapter)).eval()
    probe = _probe(model)
    expected = _logits(model, probe)
    merged = model.merge_and_unload(safe_merge=True)
    _require_equal(_logits(merged, probe), expected)
    if as_trained is not None:
        _require_close(expected, as_trained, most=QUANTIZED_DIVERGENCE, what="the 4-bit model as it was trained")
    _round(merged, settings, expected=expected)
    _write(merged, into, settings=settings)


def write_full(weights: Path, into: Path, *, settings: Merged) -> None:
    """Write fully tuned weights in the wanted number format. Raises INTERNAL_ERROR if it cannot hold them."""
    model = load_base(weights, dtype=torch.float32, on=_CPU).eval()
    _round(model, settings, expected=_logits(model, _probe(model)))
    _write(model, into, settings=settings)


def _round(model: Any, settings: Merged, *, expected: torch.Tensor) -> None:
    """Round to the wanted type, and hold what that makes of the logits against what they were."""
    model.to(getattr(torch, settings.dtype)).float()
    found = _logits(model, _probe(model))
    _require_close(found, expected, most=DIVERGENCE[settings.dtype], what="the weights in float32")


def _dequantized(
    base: Path, adapter: Path, quantization: Quantization, *, dtype: torch.dtype, new_tokens: Sequence[int]
) -> tuple[Any, torch.Tensor]:
    """Return the 4-bit base in float32, and what it says with the adapter while it is still in 4 bit."""
    from peft import PeftModel

    quantized = load_base(base, dtype=dtype, quantization=quantization, on=_CPU)
    grow_embeddings(quantized, new_tokens)
    adapted = PeftModel.from_pretrained(quantized, str(adapter)).eval()
    said = _logits(adapted, _probe(adapted))
    weights = load_base(base, dtype=torch.float32, on=_CPU)
    grow_embeddings(weights, new_tokens)
    _copy(adapted.unload(), weights)
    return weights, said


def _copy(quantized: Any, weights: Any) -> None:
    """Copy what a 4-bit model computes with into the same model in float32.

    Module by module, since bitsandbytes has replaced more than numbers: GPT-2's Conv1D holds its matrix the other way.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Params4bit
    from transformers.pytorch_utils import Conv1D

    for name, module in weights.named_modules():
        other = quantized.get_submodule(name)
        for key, parameter in module.named_parameters(recurse=False):
            trained = getattr(other, key)
            if isinstance(trained, Params4bit):
                value = dequantize_4bit(trained.data, trained.quant_state)
                parameter.data = (value.T if isinstance(module, Conv1D) else value).float().contiguous()
            else:
                parameter.data = trained.data.float().clone()


def _probe(model: Any) -> torch.Tensor:
    """Return tokens from all over the vocabulary."""
    vocabulary = model.config.get_text_config().vocab_size
    return torch.linspace(0, vocabulary - 1, min(_PROBE_TOKENS, vocabulary)).long().unsqueeze(0)


def _require_equal(logits: torch.Tensor, expected: torch.Tensor) -> None:
    difference = ((logits - expected).abs().max() / expected.abs().max()).item()
    log.info("merged: logits differ by at most %.1e of the largest one", difference)
    if not difference < TOLERANCE:
        raise TrainerError(
            ExitCode.INTERNAL_ERROR,
            f"The merged model's logits differ from the adapted one's by {difference:.3g} of the largest one.",
        )


def _require_close(logits: torch.Tensor, expected: torch.Tensor, *, most: float, what: str) -> None:
    found, wanted = logits.double().log_softmax(-1), expected.double().log_softmax(-1)
    divergence = (wanted.exp() * (wanted - found)).sum(-1).mean().item()
    agree = (found.argmax(-1) == wanted.argmax(-1)).double().mean().item()
    log.info("merged: divergence %.1e from %s, %.0f %% of the likeliest tokens the same", divergence, what, 100 * agree)
    if not divergence < most:  # NaN as well: float16 has overflowed
        raise TrainerError(
            ExitCode.INTERNAL_ERROR,
            f"The merged model differs from {what} by a divergence of {divergence:.3g} nats a token (at most {most:g})"
            ": set output.merged.dtype to float32, or output.merged.enabled to false and serve the adapter.",
        )


def _write(model: Any, into: Path, *, settings: Merged) -> None:
    model.config.use_cache = True  # off in training
    model.to(getattr(torch, settings.dtype)).save_pretrained(into, max_shard_size=settings.max_shard_size)


def _logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.float()
