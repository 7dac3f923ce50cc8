"""Memory of one GPU at the peak of a training step, from the model's shape alone.

What is there all the time: LoRA holds the base in the computing precision, or its linear layers in FP8 (8 bits a
weight), QLoRA in NF4 (Dettmers et al. 2023: 4 bits a weight, 0.127 more for doubly quantised constants, 0.5 without);
what is trained is held in float32 with its gradient and the optimizer's state: two moments of AdamW make 16 bytes a
parameter (Rajbhandari et al. 2020, section 3), in 8 bits a quarter as much (Dettmers et al. 2021, arXiv:2110.02861: a
constant for each 256). Under autocast the 16-bit copies of trained weights live as long as the activations of their
layer. What comes and goes: `activations.py`.

A step is highest at one of three moments: when the forward pass ends, in the backward pass of the loss, and in that of
the last layer; the parts of the highest are the breakdown. `benchmarks/estimate_bench.py` holds it against real peaks
(benchmarks/results): within a few percent of what torch allocates. To that the fit adds what was measured beside it:
the CUDA context, and what the allocator holds and cannot use.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_contract import activations
from finetune_contract.deepspeed_spec import PARTITIONED_WEIGHTS, Offload
from finetune_contract.prepared import Estimate
from finetune_contract.shape import ModelShape
from finetune_contract.sharing import ALONE, BUCKET, LIVE, Sharing
from finetune_contract.spec import FP8, Lora, Method, Optimizer, Precision, Quantization

GIB = 1 << 30
CONTEXT = 850_000_000
"""CUDA context with the kernels of torch and cuBLAS: 0.80 to 0.81 GB on an H100."""
RESERVED = {False: 0.025, True: 0.05}
"""What the allocator holds beyond the peak, as a share of it: at most 2.2 % without recomputation, 4.5 % with it."""
CONTEXT_OF_SEVERAL = 2_260_000_000
"""The same with NCCL's buffers: 1.9 to 2.25 GB on two H100."""
RESERVED_SHARED = 0.06
"""With ZeRO, where the GPU is nearly full; with room to spare the allocator takes up to a quarter more."""
USABLE = 0.98
"""Share of a GPU's memory that is planned with."""
NF4 = 0.5
BYTE = 1
CONSTANTS = {True: 0.127 / 8, False: 0.5 / 8}
FLOAT = 4
STATE_BYTES: dict[Optimizer, float] = {
    Optimizer.ADAMW: 2 * FLOAT,
    Optimizer.ADAMW_8BIT: 2 * (1 + FLOAT / 256),
    Optimizer.PAGED_ADAMW_8BIT: 0,
    Optimizer.PAGED_ADAMW_32BIT: 0,
    Optimizer.LION_8BIT: 1 + FLOAT / 256,
    Optimizer.ADAFACTOR: 0,
}
"""The optimizer's state, a trained parameter. Paged state gives way to whatever else needs the GPU's memory."""
ALL_LINEAR = "all-linear"
EMBEDDINGS = frozenset({"embed_tokens", "lm_head", "wte", "embed_in", "embed_out"})


@dataclass(frozen=True, slots=True)
class Tuning:
    """What decides the memory beside the model's shape."""

    method: Method
    precision: Precision
    lora: Lora
    quantization: Quantization
    micro_batch: int
    sequence_length: int
    recompute: bool
    """Gradient checkpointing."""
    packing: bool = False
    """The examples of a micro-batch lie in one sequence."""
    optimizer: Optimizer = Optimizer.ADAMW
    new_tokens: int = 0
    """Tokens added to the vocabulary."""
    sides: int = 1
    """Sequences an example: a preference has two."""
    sharing: Sharing = ALONE
    """What the GPUs share out."""
    fast: bool = False
    """Whether the trainer computes steps on its fast path, as it does on a GPU, if the model has one."""

    @property
    def in_fp8(self) -> bool:
        """Whether the frozen linear layers are held in FP8."""
        return self.method is Method.LORA and self.quantization.type == FP8


def estimate(shape: ModelShape, tuning: Tuning, *, gpu_bytes: int | None = None) -> Estimate:
    """Return the breakdown, and whether it fits where the GPU's memory is known."""
    trained = trained_parameters(shape, tuning)
    breakdown = {
        **(_shared(shape, tuning, trained) if tuning.sharing.zero_stage else _whole(shape, tuning, trained)),
        **_at_the_peak(shape, tuning, trained),
    }
    breakdown["buffers"] += _sent(shape, tuning)
    if tuning.in_fp8:  # loaded in 16 bits, measured, and quantised layer by layer then
        breakdown["buffers"] += max(_size(tuning.precision) * shape.parameters() - sum(breakdown.values()), 0)
    breakdown["runtime"] = _runtime(tuning, sum(breakdown.values()))
    total = sum(breakdown.values())
    fits = None if gpu_bytes is None else total <= USABLE * gpu_bytes
    return Estimate(per_gpu_bytes=total, gpu_bytes=gpu_bytes, fits=fits, breakdown=breakdown)


def _whole(shape: ModelShape, tuning: Tuning, trained: int) -> dict[str, int]:
    """Return what is there all the time, where each GPU holds it all."""
    return {
        "weights": _weights(shape, tuning),
        "adapter": 0 if tuning.method is Method.FULL else FLOAT * trained,
        "gradients": FLOAT * trained,
        "optimizer": _optimizer(shape, tuning, trained),
    }


def _shared(shape: ModelShape, tuning: Tuning, trained: int) -> dict[str, int]:
    """Return a GPU's share with ZeRO: weights to compute with, and the optimizer's in float32 with its moments.

    Gradients are added up in float32 (stage 1: of everything, beside those of the pass).
    """
    sharing, size = tuning.sharing, _size(tuning.precision)
    held = sharing.ranks if sharing.zero_stage == PARTITIONED_WEIGHTS else 1
    everywhere, away = sharing.offload is Offload.ALL, sharing.offload is not Offload.NONE
    summed = (FLOAT + size) * trained if sharing.zero_stage == 1 else FLOAT * trained // sharing.ranks
    return {
        "weights": _shared_weights(shape, tuning, held=0 if everywhere else 1 / held),
        "adapter": 0 if tuning.method is Method.FULL or everywhere else size * trained // held,
        "gradients": 0 if everywhere else summed,
        "optimizer": 0 if away else int((FLOAT + STATE_BYTES[tuning.optimizer]) * trained) // sharing.ranks,
    }


def _shared_weights(shape: ModelShape, tuning: Tuning, *, held: float) -> int:
    """Return what a GPU has that holds such a part of the weights; the constants of quantised ones are not shared."""
    size, quantised = _size(tuning.precision), shape.linear_parameters()
    if tuning.method is not Method.QLORA:
        return int(held * size * shape.parameters())
    packed = NF4 * quantised + size * (shape.parameters() - quantised)
    return int(held * packed + CONSTANTS[tuning.quantization.double_quant] * quantised)


def _sent(shape: ModelShape, tuning: Tuning) -> int:
    """Return the buffers of what crosses between GPUs: gradients on their way, gathered weights."""
    stage, size, largest = tuning.sharing.zero_stage, _size(tuning.precision), shape.vocab * shape.hidden
    sends_all = stage and tuning.method is Method.FULL  # adapters' gradients are few
    gradients = 2 * BUCKET + largest if sends_all else 0
    gradients += largest if sends_all and tuning.sharing.offload is not Offload.NONE else 0
    gathered = LIVE + largest if stage == PARTITIONED_WEIGHTS else 0
    return size * (gradients + gathered)


def _runtime(tuning: Tuning, allocated: int) -> int:
    if tuning.sharing.zero_stage:
        return CONTEXT_OF_SEVERAL + int(RESERVED_SHARED * allocated)
    context = CONTEXT if tuning.sharing.ranks == 1 else CONTEXT_OF_SEVERAL
    return context + int(RESERVED[tuning.recompute] * allocated)


def trained_parameters(shape: ModelShape, tuning: Tuning) -> int:
    """Return how many parameters are trained."""
    if tuning.method is Method.FULL:
        return shape.parameters() + _new_rows(shape, tuning.new_tokens)
    return adapter_parameters(shape, tuning.lora, new_tokens=tuning.new_tokens)


def adapter_parameters(shape: ModelShape, lora: Lora, *, new_tokens: int = 0) -> int:
    """Return what is trained of and beside the adapters: both matrices of each target, rank x (inputs + outputs), and
    DoRA's magnitudes, one an output.
    """
    targets = list(_targets(shape, lora).values())
    matrices = lora.rank * sum(inputs + outputs for inputs, outputs in targets)
    magnitudes = sum(outputs for _, outputs in targets) if lora.dora else 0
    return shape.layers * (matrices + magnitudes) + _saved(shape, lora) + _new_rows(shape, new_tokens)


def _targets(shape: ModelShape, lora: Lora) -> dict[str, tuple[int, int]]:
    """Return the layers of one decoder layer that get an adapter, with inputs and outputs."""
    linears = shape.linears()
    # A name that is not known here counts as the widest layer: rather too much than too little.
    widest = max(linears.values(), key=sum)
    found = dict(linears) if ALL_LINEAR in lora.target_modules else {}
    for wanted in lora.target_modules:
        if wanted != ALL_LINEAR:
            found |= {name: sizes for name, sizes in linears.items() if _is_called(name, wanted)} or {wanted: widest}
    left_out = (*lora.exclude_modules, *lora.modules_to_save)
    return {name: sizes for name, sizes in found.items() if not any(_is_within(name, one) for one in left_out)}


def _saved(shape: ModelShape, lora: Lora) -> int:
    """Return the parameters of modulesToSave; norms and biases, which are few, left out."""
    embeddings = min(sum(name in EMBEDDINGS for name in lora.modules_to_save), 1 if shape.tied else 2)
    inside = [
        inputs * outputs
        for name, (inputs, outputs) in shape.linears().items()
        if any(_is_within(name, one) for one in lora.modules_to_save)
    ]
    return embeddings * shape.vocab * shape.hidden + shape.layers * sum(inside)


def _new_rows(shape: ModelShape, new_tokens: int) -> int:
    return new_tokens * shape.hidden * (1 if shape.tied else 2)


def _is_called(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _is_within(name: str, wanted: str) -> bool:
    return _is_called(name, wanted) or name.startswith(f"{wanted}.")


def _optimizer(shape: ModelShape, tuning: Tuning, trained: int) -> int:
    if tuning.optimizer is Optimizer.ADAFACTOR:
        # A mean a row and a mean a column of each matrix, of which the short side tells.
        return FLOAT * trained // (shape.hidden if tuning.method is Method.FULL else tuning.lora.rank)
    if tuning.optimizer is Optimizer.ADAMW_8BIT and tuning.method is Method.FULL:
        # Embeddings keep moments of 32 bits, as bitsandbytes' authors advise.
        whole = shape.vocab * shape.hidden
        return int(STATE_BYTES[Optimizer.ADAMW] * whole + STATE_BYTES[tuning.optimizer] * (trained - whole))
    return int(STATE_BYTES[tuning.optimizer] * trained)


def _weights(shape: ModelShape, tuning: Tuning) -> int:
    parameters, size = shape.parameters(), _size(tuning.precision)
    match tuning.method:
        case Method.LORA:
            in_bytes = shape.linear_parameters() if tuning.in_fp8 else 0
            return in_bytes * BYTE + (parameters - in_bytes) * size
        case Method.QLORA:
            quantised = shape.linear_parameters()
            return (
                int(quantised * (NF4 + CONSTANTS[tuning.quantization.double_quant])) + (parameters - quantised) * size
            )
        case Method.FULL:
            return parameters * FLOAT


def _at_the_peak(shape: ModelShape, tuning: Tuning, trained: int) -> dict[str, int]:
    """Return what comes and goes, at the moment when it is most."""
    found = _activations(shape, tuning)
    copies = _copies(shape, tuning, trained)
    one = 1 if tuning.recompute else shape.layers  # layers whose activations are there in the backward pass
    kept = shape.layers * found.boundary if tuning.recompute else 0
    layers = 0 if tuning.recompute else shape.layers * found.layer
    moments = (
        {"copies": copies, "activations": kept + layers + found.final, "logits": found.loss, "buffers": 0},
        {
            "copies": 0 if tuning.recompute else copies,
            "activations": kept + layers + found.final,
            "logits": found.loss_backward,
            "buffers": 0,
        },
        {
            "copies": copies * one // shape.layers,
            "activations": kept + one * found.layer,
            "logits": found.head_gradient,
            "buffers": found.buffers,
        },
    )
    return max(moments, key=lambda moment: sum(moment.values()))


def _activations(shape: ModelShape, tuning: Tuning) -> activations.Activations:
    size = _size(tuning.precision)
    if tuning.fast:
        tokens = tuning.micro_batch * tuning.sequence_length
        return activations.count_fast(shape, tuning.method, size=size, tokens=tokens, in_fp8=tuning.in_fp8)
    return activations.count(
        shape,
        tuning.method,
        size=size,
        weights=_trained_size(tuning),
        targets=_targets(shape, tuning.lora),
        micro_batch=tuning.micro_batch * tuning.sides,
        length=tuning.sequence_length,
        packing=tuning.packing,
        in_fp8=tuning.in_fp8,
    )


def _copies(shape: ModelShape, tuning: Tuning, trained: int) -> int:
    """Return the bytes of the 16-bit copies that autocast makes of trained weights, and of PEFT's of embeddings with
    new tokens: a whole matrix with the new rows in it, and its gradient (counted, not measured).
    """
    size, full = _size(tuning.precision), tuning.method is Method.FULL
    embeddings = 2 * size * shape.vocab * shape.hidden if tuning.new_tokens and not full else 0
    if _trained_size(tuning) == size:
        return embeddings
    return embeddings + size * (shape.linear_parameters() if full else trained)


def _trained_size(tuning: Tuning) -> int:
    """Return the bytes of a trained weight as the passes find it: with ZeRO its float32 lies in the optimizer."""
    return _size(tuning.precision) if tuning.sharing.zero_stage else FLOAT


def _size(precision: Precision) -> int:
    return 2 if precision is Precision.BFLOAT16 else FLOAT
