"""Micro-batch, recomputation, packing and what GPUs share: the first way of cutting a step that fits a GPU.

None of them changes what a step computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from finetune_contract.defaults import sides
from finetune_contract.estimate import Tuning, estimate
from finetune_contract.prepared import Estimate
from finetune_contract.run_config import Device
from finetune_contract.shape import ModelShape
from finetune_contract.sharing import Sharing, keeps_fast_path, sharings
from finetune_contract.spec import Objective, TuningSpec

CPU_TOKENS = 4096
GPU_TOKENS = 16384
"""Tokens of a micro-batch beyond which a GPU gets no faster."""
_WHY_STAGE = {
    0: "each GPU holds all that it needs",
    1: "the GPUs share the optimizer's state",
    2: "a GPU has no room for optimizer and gradients of the whole model, they share them",
    3: "a GPU has no room for the whole model, they share it",
}


class ResolveError(ValueError):
    """The settings contradict each other or the model; the message names the field."""


def fitting(
    spec: TuningSpec, tuning: Tuning, *, device: Device, shape: ModelShape, mean: float, because: dict[str, str]
) -> tuple[Tuning, Estimate]:
    """Return the first tuning that fits: large micro-batches first, recomputation only after all of them."""
    memory = device.gpu_memory_bytes if device.gpus else None
    given = spec.hyperparameters.packing
    sparse = mean < tuning.sequence_length / 2 and spec.objective is Objective.SFT
    tried = [
        replace(
            tuning,
            micro_batch=size,
            recompute=again,
            sharing=sharing,
            fast=tuning.fast and keeps_fast_path(tuning.method, sharing),
            packing=(size > 1 and sparse) if given is None else given,
        )
        for again, sharing, size in _order(spec, tuning, device)
    ]
    estimates = [estimate(shape, one, gpu_bytes=memory) for one in tried]
    best = next((at for at, found in enumerate(estimates) if found.fits is not False), len(tried) - 1)
    chosen = tried[best]
    if spec.hyperparameters.micro_batch_size is None:
        because["microBatchSize"] = _why_micro_batch(device, memory)
    if device.ranks > 1 and (spec.deepspeed is None or spec.deepspeed.zero_stage is None):
        because["zeroStage"] = _WHY_STAGE[chosen.sharing.zero_stage]
    if spec.hyperparameters.gradient_checkpointing is None:
        because["gradientCheckpointing"] = (
            "without it no micro-batch fits the GPU" if chosen.recompute else "the activations fit without it"
        )
    return chosen, estimates[best]


def _order(spec: TuningSpec, tuning: Tuning, device: Device) -> Iterator[tuple[bool, Sharing, int]]:
    sizes = _micro_batches(spec, tuning.sequence_length, device)
    given = spec.hyperparameters.gradient_checkpointing
    # Sharing costs what crosses the wires between GPUs, recomputation a third of the step.
    return product((given,) if given is not None else (False, True), sharings(spec, device), sizes)


def _micro_batches(spec: TuningSpec, length: int, device: Device) -> list[int]:
    """Return the user's micro-batch, or the powers of two that divide a GPU's share of the batch, largest first."""
    batch, gpus = spec.hyperparameters.batch_size, device.ranks
    share, rest = divmod(batch, gpus)
    if rest:
        sharing = "GPUs" if device.gpus else "processes"
        raise ResolveError(f"hyperparameters.batchSize is {batch}, which {gpus} {sharing} cannot share evenly.")
    given = spec.hyperparameters.micro_batch_size
    if given is not None:
        if share % given:
            raise ResolveError(
                f"hyperparameters.microBatchSize is {given}, which does not divide {share} examples a GPU."
            )
        return [given]
    most = max((GPU_TOKENS if device.gpus else CPU_TOKENS) // (length * sides(spec)), 1)
    powers = [1 << exponent for exponent in range(share.bit_length())]
    return [size for size in reversed(powers) if share % size == 0 and size <= most] or [1]


def _why_micro_batch(device: Device, memory: int | None) -> str:
    if not device.gpus:
        return f"at most {CPU_TOKENS} tokens at a time on a CPU"
    known = "the largest that fits the GPU's memory" if memory else "the GPU's memory is not known"
    return f"{known}, at most {GPU_TOKENS} tokens"
