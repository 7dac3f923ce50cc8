"""The rules of spec.quantization: which number format is for which method, and what FP8 does not go with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune_contract.spec import FP8
from finetune_operator.api.rule import Rule

_AT = ("spec",)
_IN_FP8 = f"(has(self.quantization) && has(self.quantization.type) && self.quantization.type == '{FP8}')"
_DEEPSPEED = (
    "(has(self.deepspeed) && ((has(self.deepspeed.zeroStage) && self.deepspeed.zeroStage > 0) || "
    "(has(self.deepspeed.offload) && self.deepspeed.offload != 'none')))"
)
_CHANGES_WEIGHTS = (
    "(has(self.lora) && ((has(self.lora.dora) && self.lora.dora) || "
    "(has(self.lora.initialization) && self.lora.initialization in ['pissa', 'olora'])))"
)


def quantization_rules() -> Iterator[Rule]:
    """Yield them all."""
    yield Rule(
        _AT,
        "self.method != 'Full' || !has(self.quantization)",
        "quantization is for methods QLoRA and LoRA, whose base model is frozen: remove it",
        lambda spec: spec.get("method") != "Full" or "quantization" not in spec,
    )
    yield Rule(
        _AT,
        f"self.method != 'QLoRA' || !{_IN_FP8}",
        "quantization.type fp8 is for method LoRA: use nf4, or set method: LoRA",
        lambda spec: spec.get("method") != "QLoRA" or not _in_fp8(spec),
    )
    yield Rule(
        _AT,
        f"self.method != 'LoRA' || !has(self.quantization) || {_IN_FP8}",
        "quantization is for method QLoRA, but for type fp8: remove it, or set method: QLoRA or quantization.type: fp8",
        lambda spec: spec.get("method") != "LoRA" or "quantization" not in spec or _in_fp8(spec),
    )
    yield Rule(
        (*_AT, "quantization"),
        f"!has(self.doubleQuant) || !has(self.type) || self.type != '{FP8}'",
        "doubleQuant is for type nf4: remove it",
        lambda quantization: "doubleQuant" not in quantization or quantization.get("type") != FP8,
    )
    yield Rule(
        _AT,
        f"!{_IN_FP8} || !has(self.objective) || self.objective == 'SFT'",
        "quantization.type fp8 is for objective SFT: remove quantization",
        lambda spec: not _in_fp8(spec) or spec.get("objective", "SFT") == "SFT",
    )
    yield Rule(
        _AT,
        f"!{_IN_FP8} || !has(self.hyperparameters) || !has(self.hyperparameters.precision) || "
        "self.hyperparameters.precision == 'bfloat16'",
        "quantization.type fp8 gives its results in bfloat16: remove hyperparameters.precision",
        lambda spec: not _in_fp8(spec) or spec.get("hyperparameters", {}).get("precision", "bfloat16") == "bfloat16",
    )
    yield Rule(
        _AT,
        f"!{_IN_FP8} || !{_CHANGES_WEIGHTS}",
        "lora.dora and lora.initialization pissa and olora need the base model's weights in 16 bits: "
        "remove them, or quantization",
        lambda spec: not _in_fp8(spec) or not _changes_weights(spec.get("lora", {})),
    )
    yield Rule(
        _AT,
        f"!{_IN_FP8} || !{_DEEPSPEED}",
        "deepspeed does not share weights in fp8: remove deepspeed, or quantization",
        lambda spec: not _in_fp8(spec) or not _shares(spec.get("deepspeed", {})),
    )


def _in_fp8(spec: dict[str, Any]) -> bool:
    return bool(spec.get("quantization", {}).get("type") == FP8)


def _changes_weights(lora: dict[str, Any]) -> bool:
    return bool(lora.get("dora")) or lora.get("initialization") in ("pissa", "olora")


def _shares(deepspeed: dict[str, Any]) -> bool:
    return bool(deepspeed.get("zeroStage")) or deepspeed.get("offload", "none") != "none"
