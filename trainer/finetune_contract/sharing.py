"""What the GPUs of a run share out, in the order in which it is tried: no more than is needed to fit."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_contract.deepspeed_spec import PARTITIONED_WEIGHTS, DeepSpeed, Offload
from finetune_contract.run_config import Device
from finetune_contract.spec import Lora, Method, Optimizer, TuningSpec

_STAGES = {Method.FULL: (0, 2, 3), Method.LORA: (0, 3), Method.QLORA: (0, 3)}
"""Stage 1 is left out: 2 costs no more time and less memory. With adapters there is little to share but the weights."""
BUCKET = 100_000_000
"""Numbers that are sent at one time: enough to be fast, 0.2 GB a buffer in 16 bits."""
LIVE = 100_000_000
"""Weights that stage 3 gathers ahead, and keeps for a layer that comes again soon."""
SHARED_GRADIENTS = PARTITIONED_WEIGHTS - 1
"""The stage that shares out all but the weights."""
LOWEST = {Offload.NONE: 0, Offload.OPTIMIZER: 2, Offload.ALL: PARTITIONED_WEIGHTS}
"""The stage from which on it can be offloaded."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a run's state is shared out to its GPUs."""

    zero_stage: int = 0
    offload: Offload = Offload.NONE
    ranks: int = 1


ALONE = Sharing()
"""Every GPU holds all that it needs."""


def keeps_fast_path(method: Method, sharing: Sharing) -> bool:
    """Whether the trainer's fast path computes passes with it: adapters' where nothing is shared out, those of a model
    that is trained whole where optimizer and gradients are, so that its weights are there in the computing precision.
    """
    if method is not Method.FULL:
        return not sharing.zero_stage
    return sharing.zero_stage == SHARED_GRADIENTS and sharing.offload is Offload.NONE


def sharings(spec: TuningSpec, device: Device) -> list[Sharing]:
    """Return what comes into question, the least first: what the user says, or what the method can do."""
    asked = spec.deepspeed or DeepSpeed()
    if asked.zero_stage is not None:
        return [Sharing(asked.zero_stage, asked.offload, device.ranks)]
    lowest = LOWEST[asked.offload]
    most = (0,) if device.ranks == 1 and not lowest else _STAGES[spec.method]
    stages = [stage for stage in most if stage >= lowest and (not stage or _can_share(spec, stage))]
    return [Sharing(stage, asked.offload, device.ranks) for stage in stages or [lowest]]


def offloads(spec: TuningSpec, ranks: int) -> list[Sharing]:
    """Return what else would do where the GPUs are too small, though slower: the node's memory."""
    wanted = (Sharing(2, Offload.OPTIMIZER, ranks), Sharing(PARTITIONED_WEIGHTS, Offload.ALL, ranks))
    return [one for one in wanted if _can_share(spec, one.zero_stage)]


def _can_share(spec: TuningSpec, stage: int) -> bool:
    """Whether a run that did not ask for it may share; the rules of the API refuse the same where it is asked for."""
    if spec.hyperparameters.optimizer is not Optimizer.ADAMW or spec.in_fp8:
        return False
    lora = spec.lora or Lora()
    whole = (
        spec.model.new_tokens or lora.dora or lora.modules_to_save or lora.initialization not in ("default", "gaussian")
    )
    return stage < PARTITIONED_WEIGHTS or not whole
