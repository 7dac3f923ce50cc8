"""How several GPUs share what one cannot hold: `spec.deepspeed`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_contract.fields import ConfigMapKeyRef
from finetune_contract.model import Model

PARTITIONED_WEIGHTS = 3
"""The stage from which on a process holds a share of the weights only."""


class Offload(StrEnum):
    """What lies in the node's memory instead of the GPU's."""

    NONE = "none"
    OPTIMIZER = "optimizer"
    ALL = "all"


class DeepSpeed(Model):
    """DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): every GPU holds a share of what else each would hold whole. It changes memory and speed, never the result."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """What is shared out: nothing (0), the optimizer's state (1), gradients too (2), weights too (3). When absent, the lowest that fits the GPUs: of 0, 2 and 3 for Full, of 0 and 3 for LoRA and QLoRA."""
    offload: Offload = Offload.NONE
    """What is kept in the node's memory, which resources.memory must have room for: none, optimizer (12 bytes a parameter, with stages 2 and 3), all (the weights too, with stage 3). Slower, by what crosses the bus and by updates on the CPU."""
    config_map_ref: ConfigMapKeyRef | None = None
    """A DeepSpeed configuration in JSON, laid over the trainer's, for what the job has no field for: buckets, prefetching, communication. What the job says it may repeat, leave out or call auto. Needs zeroStage 1, 2 or 3."""
