"""What to change so that a job fits its GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from finetune_contract.defaults import sides
from finetune_contract.estimate import Tuning, estimate
from finetune_contract.resolve import LENGTH_STEP, Choice
from finetune_contract.shape import ModelShape
from finetune_contract.sharing import Sharing, offloads
from finetune_contract.spec import Lora, Method, Quantization, TuningSpec


def what_would_fit(spec: TuningSpec, choice: Choice, *, shape: ModelShape, gpu_bytes: int) -> str:
    """Return what to change so that the job fits: a shorter sequence, the node's memory, QLoRA, or a larger GPU."""
    base = Tuning(
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
    )
    for method, sharing in dict.fromkeys(_ways(spec, choice)):
        length = choice.max_sequence_length
        while length >= LENGTH_STEP:
            tuning = replace(base, method=method, sequence_length=length, sharing=sharing)
            if estimate(shape, tuning, gpu_bytes=gpu_bytes).fits:
                return _advice(spec, choice, tuning)
            length //= 2
    return "no method fits this GPU: use a larger one or a smaller model"


def _ways(spec: TuningSpec, choice: Choice) -> Iterator[tuple[Method, Sharing]]:
    """Yield methods and what is shared or offloaded, those first that change least."""
    yield spec.method, choice.sharing
    if spec.method is Method.FULL:
        yield from ((spec.method, sharing) for sharing in offloads(spec, choice.sharing.ranks))
    for method in (Method.LORA, Method.QLORA):
        yield method, Sharing(ranks=choice.sharing.ranks)


def _advice(spec: TuningSpec, choice: Choice, fits: Tuning) -> str:
    parts = [f"method {fits.method}"] if fits.method is not spec.method else []
    if fits.sharing.offload is not choice.sharing.offload and not parts:
        parts.append(f"deepspeed.offload {fits.sharing.offload}, with resources.memory for it")
    if fits.sequence_length < choice.max_sequence_length:
        parts.append(f"maxSequenceLength {fits.sequence_length}")
    if not parts or choice.micro_batch_size > 1:
        parts.append("microBatchSize 1")
    if spec.hyperparameters.gradient_checkpointing is False:
        parts.append("gradientCheckpointing true")
    return f"this would fit: {', '.join(parts)}"
