"""The rules of spec.deepspeed: what contradicts the rest of the spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune_operator.api.rule import Rule

_AT = ("spec",)
_OFF = "(!has(self.deepspeed.offload) || self.deepspeed.offload == 'none')"
_SHARES = f"((has(self.deepspeed.zeroStage) ? self.deepspeed.zeroStage > 0 : !{_OFF}))"
_PARTITIONS = (
    "(has(self.deepspeed.zeroStage) ? self.deepspeed.zeroStage == 3 : "
    "(has(self.deepspeed.offload) && self.deepspeed.offload == 'all'))"
)
_WHOLE_BASE = (
    "!(has(self.model.newTokens) && size(self.model.newTokens) > 0) && (!has(self.lora) || "
    "(!(has(self.lora.dora) && self.lora.dora) && !(has(self.lora.modulesToSave) && size(self.lora.modulesToSave) > 0)"
    " && !(has(self.lora.initialization) && self.lora.initialization in ['pissa', 'olora'])))"
)


def deepspeed_rules() -> Iterator[Rule]:
    """Yield them all."""
    yield Rule(
        _AT,
        "!has(self.deepspeed) || self.method != 'QLoRA'",
        "deepspeed is for methods Full and LoRA: with QLoRA each GPU holds the 4-bit model, remove it",
        lambda spec: "deepspeed" not in spec or spec.get("method") != "QLoRA",
    )
    yield Rule(
        _AT,
        "!has(self.deepspeed) || self.method != 'LoRA' || !has(self.deepspeed.zeroStage) || "
        "!(self.deepspeed.zeroStage in [1, 2])",
        "deepspeed.zeroStage is 0 or 3 with LoRA: adapters' gradients and optimizer are too small to share out",
        lambda spec: spec.get("method") != "LoRA" or _stage(spec) not in (1, 2),
    )
    yield Rule(
        (*_AT, "deepspeed"),
        "!has(self.zeroStage) || !has(self.offload) || self.offload == 'none' || "
        "self.zeroStage >= (self.offload == 'all' ? 3 : 2)",
        "offload optimizer needs zeroStage 2 or 3, and offload all needs zeroStage 3",
        lambda deepspeed: (
            deepspeed.get("zeroStage", 3) >= {"optimizer": 2, "all": 3}.get(deepspeed.get("offload", "none"), 0)
        ),
    )
    yield Rule(
        _AT,
        f"!has(self.deepspeed) || !{_SHARES} || !has(self.objective) || self.objective == 'SFT'",
        "deepspeed shares a run of objective SFT only: remove deepspeed",
        lambda spec: not _shares(spec) or spec.get("objective", "SFT") == "SFT",
    )
    yield Rule(
        _AT,
        f"!has(self.deepspeed) || !{_SHARES} || !has(self.hyperparameters) || !has(self.hyperparameters.optimizer) || "
        "self.hyperparameters.optimizer == 'adamw'",
        "deepspeed shares the state of optimizer adamw only: leave hyperparameters.optimizer out",
        lambda spec: not _shares(spec) or spec.get("hyperparameters", {}).get("optimizer", "adamw") == "adamw",
    )
    yield Rule(
        _AT,
        f"!has(self.deepspeed) || !{_PARTITIONS} || ({_WHOLE_BASE})",
        "zeroStage 3 leaves no GPU a whole weight, which model.newTokens, lora.dora, lora.modulesToSave and "
        "lora.initialization pissa and olora need: remove them, or use a lower stage",
        lambda spec: not _partitions(spec) or _needs_no_whole_weight(spec),
    )


def _stage(spec: dict[str, Any]) -> int | None:
    stage: int | None = spec.get("deepspeed", {}).get("zeroStage")
    return stage


def _shares(spec: dict[str, Any]) -> bool:
    stage, offload = _stage(spec), spec.get("deepspeed", {}).get("offload", "none")
    return bool(stage > 0 if stage is not None else offload != "none")


def _partitions(spec: dict[str, Any]) -> bool:
    stage, offload = _stage(spec), spec.get("deepspeed", {}).get("offload", "none")
    return bool(stage == 3 if stage is not None else offload == "all")  # noqa: PLR2004


def _needs_no_whole_weight(spec: dict[str, Any]) -> bool:
    lora = spec.get("lora", {})
    changes = lora.get("dora") or lora.get("modulesToSave") or lora.get("initialization") in ("pissa", "olora")
    return not spec.get("model", {}).get("newTokens") and not changes
