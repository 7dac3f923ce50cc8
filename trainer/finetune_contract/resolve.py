"""Every value that the user left open, chosen from method, data, model and GPU, each with its reason.

Pure: equal inputs give equal choices, so a later attempt, the command line and the operator all see the same. What the
user gave is never changed; what cannot be is a ResolveError that names the field.

`batchSize` counts examples with packing, too: the trainer flattens the examples of a micro-batch into one sequence
instead of padding them. So packing changes the speed of a step and never its result, nor the number of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.defaults import BETA, EPOCHS, sides, takes_fast_path, usual_rate
from finetune_contract.estimate import Tuning
from finetune_contract.fitting import ResolveError, fitting
from finetune_contract.gpus import known_gpu
from finetune_contract.prepared import Estimate, Resolved
from finetune_contract.run_config import Device
from finetune_contract.shape import ModelShape
from finetune_contract.sharing import Sharing
from finetune_contract.spec import Lora, LossOn, Method, Objective, Precision, Quantization, TuningSpec

TIMES_A_RUN = 10
SAMPLES_A_RUN = 4
"""Generation is slow: a round of answers takes about as long as some steps."""
LENGTH_STEP = 64
SANE_LENGTH = 8192
OUTLIER = 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What is known of the data before sequences have a length."""

    format: DatasetFormat
    longest: int
    """Tokens of the longest example."""
    most: int
    """99.5 % of the examples have at most as many."""
    mean: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What is settled before the data is cut."""

    max_sequence_length: int
    micro_batch_size: int
    gradient_checkpointing: bool
    precision: Precision
    packing: bool
    sharing: Sharing
    loss: LossOn
    estimate: Estimate
    because: dict[str, str]


def choose_loss(spec: TuningSpec, shape: DatasetFormat) -> LossOn:
    """Return the tokens to train on. Raises ResolveError for a loss or an objective that the data do not fit."""
    wanted = spec.hyperparameters.loss
    if (shape is DatasetFormat.PREFERENCE) != (spec.objective is not Objective.SFT):
        raise ResolveError(
            f"objective is {spec.objective}, but the data has the format {shape}: "
            + ("set objective: DPO." if spec.objective is Objective.SFT else "give pairs of chosen and rejected.")
        )
    if shape is DatasetFormat.PREFERENCE:
        if wanted not in (None, LossOn.COMPLETION):
            raise ResolveError(f"hyperparameters.loss is {wanted}, but preferences compare last answers: remove it.")
        return LossOn.COMPLETION
    if shape is DatasetFormat.TEXT:
        if wanted not in (None, LossOn.ALL):
            raise ResolveError(f"hyperparameters.loss is {wanted}, but text has no answers: use all or another format.")
        return LossOn.ALL
    return wanted or LossOn.ASSISTANT


def choose_length(spec: TuningSpec, facts: DataFacts, limit: int | None) -> tuple[int, str]:
    """Return maxSequenceLength and why. Raises ResolveError if the user's exceeds the model's limit."""
    given = spec.hyperparameters.max_sequence_length
    if given is not None:
        if limit and given > limit:
            raise ResolveError(f"hyperparameters.maxSequenceLength is {given}, but the model holds {limit} tokens.")
        return given, ""
    outliers = facts.longest > OUTLIER * facts.most
    wanted = facts.most if outliers else facts.longest
    rounded = max(math.ceil(wanted / LENGTH_STEP) * LENGTH_STEP, LENGTH_STEP)
    chosen = min(rounded, SANE_LENGTH, limit or SANE_LENGTH)
    if chosen < rounded:
        which = "the model's limit" if chosen == limit else "the most that is chosen without being asked"
        return chosen, f"{which}; the longest example has {facts.longest} tokens"
    what = "holds 99.5% of the examples, the rest is far longer" if outliers else "holds the longest example"
    return chosen, f"{what} ({wanted} tokens), rounded up to {LENGTH_STEP}"


def choose(
    spec: TuningSpec,
    *,
    device: Device,
    facts: DataFacts,
    shape: ModelShape,
    limit: int | None = None,
    fast_bfloat16: bool = True,
) -> Choice:
    """Settle what depends on memory. The estimate of the result says whether it fits.

    `fast_bfloat16`: whether the CPU multiplies bfloat16 faster than float32; asked only where there is no GPU.
    """
    because: dict[str, str] = {}
    length, why = choose_length(spec, facts, limit)
    _note(because, "maxSequenceLength", why)
    wanted, prefers = spec.hyperparameters, spec.objective is not Objective.SFT
    usual, why = _usual_precision(device, fast_bfloat16=fast_bfloat16)
    precision = _or(wanted.precision, usual, because, "precision", why)
    _require_fp8(spec, device)
    tuning = Tuning(
        method=spec.method,
        precision=precision,
        lora=spec.lora or Lora(),
        quantization=spec.quantization or Quantization(),
        micro_batch=1,
        sequence_length=length,
        recompute=False,
        optimizer=wanted.optimizer,
        new_tokens=len(spec.model.new_tokens),
        sides=sides(spec),
        fast=takes_fast_path(spec, precision, gpus=device.gpus),
    )
    if prefers and wanted.packing:
        raise ResolveError(f"hyperparameters.packing: with {spec.objective} examples are not packed; remove it.")
    tuning, found = fitting(spec, tuning, device=device, shape=shape, mean=facts.mean, because=because)
    if prefers:
        because["packing"] = "a preference is two sequences that are compared"
    elif wanted.packing is None:
        because["packing"] = f"examples have {facts.mean:.0f} tokens on average, sequences {length}"
    return Choice(
        max_sequence_length=length,
        micro_batch_size=tuning.micro_batch,
        gradient_checkpointing=tuning.recompute,
        precision=precision,
        packing=tuning.packing,
        sharing=tuning.sharing,
        loss=choose_loss(spec, facts.format),
        estimate=found,
        because=because,
    )


def _require_fp8(spec: TuningSpec, device: Device) -> None:
    """Raise ResolveError where a base in FP8 is asked for that nothing can multiply."""
    if spec.in_fp8 and not device.gpus:
        raise ResolveError(
            "quantization.type is fp8, which a CPU does not multiply: ask for a GPU (resources.gpusPerNode), or remove "
            "quantization."
        )
    known = known_gpu(device.gpu_type) if device.gpu_type else None
    if spec.in_fp8 and known and not known.fp8:
        raise ResolveError(
            f"quantization.type is fp8, which the GPU, {known.name}, does not multiply: ask for another one "
            "(resources.gpuType; L4, L40S, H100 and newer do), or remove quantization."
        )


def _usual_precision(device: Device, *, fast_bfloat16: bool) -> tuple[Precision, str]:
    if device.gpus or fast_bfloat16:
        return Precision.BFLOAT16, "float32's range at half the memory"
    return Precision.FLOAT32, "the CPU has no units for bfloat16, which is slower there"


def resolve(
    spec: TuningSpec,
    choice: Choice,
    *,
    train_examples: int,
    model_revision: str | None = None,
    dataset_revision: str | None = None,
    dataset_sha256: str | None = None,
) -> Resolved:
    """Return everything that train needs, now that the number of examples is known."""
    because = dict(choice.because)
    wanted = spec.hyperparameters
    steps = _total_steps(spec, train_examples, because)
    rate, why_rate = usual_rate(spec)
    every = max(1, steps // TIMES_A_RUN)
    about_ten = f"about {TIMES_A_RUN} times in {steps} steps"
    adapters, prefers = spec.method is not Method.FULL, spec.objective is not Objective.SFT
    alpha = _alpha(spec.lora or Lora(), because) if adapters else None
    if wanted.loss is None:
        because["loss"] = _why_loss(choice.loss)
    return Resolved(
        model_revision=model_revision,
        dataset_revision=dataset_revision,
        dataset_sha256=dataset_sha256,
        learning_rate=_or(wanted.learning_rate, rate, because, "learningRate", why_rate),
        total_steps=steps,
        batch_size=wanted.batch_size,
        micro_batch_size=choice.micro_batch_size,
        max_sequence_length=choice.max_sequence_length,
        packing=choice.packing,
        precision=choice.precision,
        gradient_checkpointing=choice.gradient_checkpointing,
        zero_stage=choice.sharing.zero_stage,
        offload=choice.sharing.offload,
        loss=choice.loss,
        eval_every_steps=_or(spec.evaluation.every_steps, every, because, "evalEverySteps", about_ten),
        checkpoint_every_steps=_checkpoint_steps(spec, every, because, about_ten),
        sample_every_steps=_or(
            spec.evaluation.samples.every_steps,
            max(1, steps // SAMPLES_A_RUN),
            because,
            "sampleEverySteps",
            f"about {SAMPLES_A_RUN} times in {steps} steps",
        ),
        lora_alpha=alpha,
        beta=_or(wanted.beta, BETA, because, "beta", f"usual for {spec.objective}") if prefers else None,
        because=because,
    )


def _checkpoint_steps(spec: TuningSpec, every: int, because: dict[str, str], why: str) -> int | None:
    if spec.checkpoint.every_steps is None and spec.checkpoint.every_minutes is not None:
        return None
    return _or(spec.checkpoint.every_steps, every, because, "checkpointEverySteps", why)


def epochs_of(spec: TuningSpec, *, train_examples: int) -> float:
    """Return how often the run sees each example."""
    wanted = spec.hyperparameters
    if wanted.max_steps is not None:
        return wanted.max_steps * wanted.batch_size / train_examples
    return wanted.epochs if wanted.epochs is not None else EPOCHS[spec.objective]


def _why_loss(loss: LossOn) -> str:
    formats = {LossOn.ALL: "text", LossOn.ASSISTANT: "with answers", LossOn.COMPLETION: "preference"}
    return f"the data's format is {formats[loss]}"


def _total_steps(spec: TuningSpec, examples: int, because: dict[str, str]) -> int:
    """Return optimizer steps: a last, smaller batch of an epoch counts as one."""
    wanted = spec.hyperparameters
    if wanted.max_steps is not None:
        return wanted.max_steps
    epochs = epochs_of(spec, train_examples=examples)
    each = math.ceil(examples / wanted.batch_size)
    because["totalSteps"] = f"{epochs:g} epochs of {examples} examples, {wanted.batch_size} a step"
    return max(1, math.ceil(epochs * each))


def _alpha(lora: Lora, because: dict[str, str]) -> float:
    return _or(lora.alpha, float(lora.rank), because, "loraAlpha", "equal to the rank, so that the scale is 1")


def _or(given: T | None, chosen: T, because: dict[str, str], name: str, why: str) -> T:
    """Return what was given, or what was chosen and note why."""
    if given is not None:
        return given
    _note(because, name, why)
    return chosen


def _note(because: dict[str, str], name: str, why: str) -> None:
    if why:
        because[name] = why
