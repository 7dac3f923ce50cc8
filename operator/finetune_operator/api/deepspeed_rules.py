"""The rules of spec.deepspeed: what contradicts the rest of the spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune_contract.deepspeed_spec import PARTITIONED_WEIGHTS
from finetune_contract.sharing import LOWEST
from finetune_operator.api.rule import Rule

_AT = ("spec",)
_LEAST_STAGE = (
    "(has(self.deepspeed.zeroStage) ? self.deepspeed.zeroStage : "
    "!has(self.deepspeed.offload) || self.deepspeed.offload == 'none' ? 0 : self.deepspeed.offload == 'all' ? 3 : 2)"
)
"""What is asked for, or what the offload needs."""
_WHOLE_BASE = (
    "!(has(self.model.newTokens) && size(self.model.newTokens) > 0) && (!has(self.lora) || "
    "(!(has(self.lora.dora) && self.lora.dora) && !(has(self.lora.modulesToSave) && size(self.lora.modulesToSave) > 0)"
    " && !(has(self.lora.initialization) && self.lora.initialization in ['pissa', 'olora'])))"
)


def deepspeed_rules() -> Iterator[Rule]:
    """Yield them all."""
    yield Rule(
        _AT,
        "!has(self.deepspeed) || self.method == 'Full' || !has(self.deepspeed.zeroStage) || "
        "!(self.deepspeed.zeroStage in [1, 2])",
        "deepspeed.zeroStage is 0 or 3 with LoRA and QLoRA: adapters' gradients and optimizer are too small to share out",
        lambda spec: spec.get("method") == "Full" or spec.get("deepspeed", {}).get("zeroStage") not in (1, 2),
    )
    yield Rule(
        (*_AT, "deepspeed"),
        "!has(self.zeroStage) || !has(self.offload) || self.offload == 'none' || "
        "self.zeroStage >= (self.offload == 'all' ? 3 : 2)",
        "offload optimizer needs zeroStage 2 or 3, and offload all needs zeroStage 3",
        lambda deepspeed: (
            "zeroStage" not in deepspeed or deepspeed["zeroStage"] >= LOWEST.get(deepspeed.get("offload"), 0)
        ),
    )
    yield Rule(
        (*_AT, "deepspeed"),
        "!has(self.configMapRef) || (has(self.zeroStage) && self.zeroStage > 0)",
        "configMapRef needs zeroStage 1, 2 or 3: with 0, or one that is chosen, DeepSpeed may have nothing to do",
        lambda deepspeed: "configMapRef" not in deepspeed or bool(deepspeed.get("zeroStage")),
    )
    yield Rule(
        _AT,
        f"!has(self.deepspeed) || {_LEAST_STAGE} == 0 || !has(self.hyperparameters) || !has(self.hyperparameters.optimizer) || "
        "self.hyperparameters.optimizer == 'adamw'",
        "deepspeed shares the state of optimizer adamw only: leave hyperparameters.optimizer out",
        lambda spec: _least_stage(spec) == 0 or spec.get("hyperparameters", {}).get("optimizer", "adamw") == "adamw",
    )
    yield Rule(
        _AT,
        f"!has(self.deepspeed) || {_LEAST_STAGE} < 3 || ({_WHOLE_BASE})",
        "zeroStage 3 leaves no GPU a whole weight, which model.newTokens, lora.dora, lora.modulesToSave and "
        "lora.initialization pissa and olora need: remove them, or use a lower stage",
        lambda spec: _least_stage(spec) < PARTITIONED_WEIGHTS or _needs_no_whole_weight(spec),
    )


def _least_stage(spec: dict[str, Any]) -> int:
    asked = spec.get("deepspeed", {})
    stage: int = asked.get("zeroStage", LOWEST.get(asked.get("offload"), 0))
    return stage


def _needs_no_whole_weight(spec: dict[str, Any]) -> bool:
    lora = spec.get("lora", {})
    changes = lora.get("dora") or lora.get("modulesToSave") or lora.get("initialization") in ("pissa", "olora")
    return not spec.get("model", {}).get("newTokens") and not changes
