"""What to change so that a job fits its GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from finetune_contract.defaults import sides
from finetune_contract.estimate import GIB, USABLE, Tuning, estimate
from finetune_contract.gpus import smallest_with
from finetune_contract.resolve import LENGTH_STEP, Choice
from finetune_contract.run_config import Device
from finetune_contract.shape import ModelShape
from finetune_contract.sharing import Sharing, offloads, sharings
from finetune_contract.spec import Lora, Method, Quantization, TuningSpec

MORE_GPUS = (2, 4, 8, 16)


def what_would_fit(spec: TuningSpec, choice: Choice, *, shape: ModelShape, gpu_bytes: int) -> str:
    """Return what to change so that the job fits: the job on this GPU, more GPUs that share the model, a larger GPU."""
    base = _smallest(spec, choice)
    ways = (
        _on_this_gpu(spec, choice, base, shape=shape, gpu_bytes=gpu_bytes),
        _on_more_gpus(spec, choice, base, shape=shape, gpu_bytes=gpu_bytes),
        _on_a_larger_gpu(base, shape=shape, gpu_bytes=gpu_bytes),
    )
    found = [way for way in ways if way]
    return f"this would fit: {'; or '.join(found)}" if found else "no known GPU fits: take a smaller model"


def _smallest(spec: TuningSpec, choice: Choice) -> Tuning:
    """Return the job as it is, with the least memory that it can do with."""
    return Tuning(
        method=spec.method,
        precision=choice.precision,
        lora=spec.lora or Lora(),
        quantization=spec.quantization or Quantization(),
        micro_batch=1,
        sequence_length=choice.max_sequence_length,
        recompute=True,
        optimizer=spec.hyperparameters.optimizer,
        new_tokens=len(spec.model.new_tokens),
        sides=sides(spec),
        sharing=choice.sharing,
    )


def _on_this_gpu(spec: TuningSpec, choice: Choice, base: Tuning, *, shape: ModelShape, gpu_bytes: int) -> str | None:
    for method, sharing in dict.fromkeys(_ways(spec, choice)):
        length = choice.max_sequence_length
        while length >= LENGTH_STEP:
            tuning = replace(base, method=method, sequence_length=length, sharing=sharing)
            if estimate(shape, tuning, gpu_bytes=gpu_bytes).fits:
                return _advice(spec, choice, tuning)
            length //= 2
    return None


def _on_more_gpus(spec: TuningSpec, choice: Choice, base: Tuning, *, shape: ModelShape, gpu_bytes: int) -> str | None:
    """Return the fewest GPUs that together hold the model, where they may share it."""
    for gpus in MORE_GPUS:
        if gpus <= choice.sharing.ranks or spec.hyperparameters.batch_size % gpus:
            continue
        for sharing in sharings(spec, Device(gpus=gpus)):
            if estimate(shape, replace(base, sharing=sharing), gpu_bytes=gpu_bytes).fits:
                return f"resources.gpusPerNode {gpus}: such GPUs share the model (ZeRO {sharing.zero_stage})"
    return None


def _on_a_larger_gpu(base: Tuning, *, shape: ModelShape, gpu_bytes: int) -> str | None:
    needed = estimate(shape, base).per_gpu_bytes / USABLE
    larger = smallest_with(needed) if needed > gpu_bytes else None
    return f"a GPU with {larger.memory_bytes / GIB:.0f} GiB, as {larger.name}" if larger else None


def _ways(spec: TuningSpec, choice: Choice) -> Iterator[tuple[Method, Sharing]]:
    """Yield methods and what is shared or offloaded, those first that change least."""
    yield spec.method, choice.sharing
    if spec.method is Method.FULL:
        yield from ((spec.method, sharing) for sharing in offloads(spec, choice.sharing.ranks))
    for method in (Method.LORA, Method.QLORA):
        yield method, Sharing(ranks=choice.sharing.ranks)


def _advice(spec: TuningSpec, choice: Choice, fits: Tuning) -> str:
    parts = [f"method {fits.method}"] if fits.method is not spec.method else []
    if parts and spec.in_fp8:
        parts.append("without quantization.type fp8")
    if fits.sharing.offload is not choice.sharing.offload and not parts:
        parts.append(f"deepspeed.offload {fits.sharing.offload}, with resources.memory for it")
    if fits.sequence_length < choice.max_sequence_length:
        parts.append(f"maxSequenceLength {fits.sequence_length}")
    if not parts or choice.micro_batch_size > 1:
        parts.append("microBatchSize 1")
    if spec.hyperparameters.gradient_checkpointing is False:
        parts.append("gradientCheckpointing true")
    return ", ".join(parts)
