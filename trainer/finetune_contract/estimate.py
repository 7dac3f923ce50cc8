"""Memory of one GPU at the peak of a training step, from the model's shape alone.

What is there all the time: LoRA holds the base in the computing precision, QLoRA in NF4 (Dettmers et al. 2023: 4 bits a
weight, 0.127 more for doubly quantised constants, 0.5 without); what is trained is held in float32 with its gradient
and two AdamW moments, 16 bytes a parameter (Rajbhandari et al. 2020, section 3). Under autocast the 16-bit copies of
trained weights live as long as the activations of their layer. What comes and goes stands in `activations.py`.

A step is highest at one of three moments: when the forward pass ends, in the backward pass of the loss, and in that of
the last layer; the parts of the highest are the breakdown. `benchmarks/estimate_bench.py` holds it against real peaks
(benchmarks/results): within a few percent of what torch allocates. To that the fit adds what was measured beside it:
the CUDA context, and what the allocator holds and cannot use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from finetune_contract import activations
from finetune_contract.prepared import Estimate
from finetune_contract.shape import ModelShape
from finetune_contract.spec import Lora, Method, Precision, Quantization

GIB = 1 << 30
CONTEXT = 850_000_000
"""CUDA context with the kernels of torch and cuBLAS: 0.80 to 0.81 GB on an H100."""
RESERVED = {False: 0.025, True: 0.05}
"""What the allocator holds beyond the peak, as a share of it: at most 2.2 % without recomputation, 4.5 % with it."""
USABLE = 0.98
"""Share of a GPU's memory that is planned with."""
NF4 = 0.5
CONSTANTS = {True: 0.127 / 8, False: 0.5 / 8}
FLOAT = 4
ALL_LINEAR = "all-linear"


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


def estimate(shape: ModelShape, tuning: Tuning, *, gpu_bytes: int | None = None) -> Estimate:
    """Return the breakdown, and whether it fits where the GPU's memory is known."""
    trained = trained_parameters(shape, tuning)
    breakdown = {
        "weights": _weights(shape, tuning),
        "adapter": 0 if tuning.method is Method.FULL else FLOAT * trained,
        "gradients": FLOAT * trained,
        "optimizer": 2 * FLOAT * trained,
        **_at_the_peak(shape, tuning, trained),
    }
    breakdown["runtime"] = CONTEXT + int(RESERVED[tuning.recompute] * sum(breakdown.values()))
    total = sum(breakdown.values())
    fits = None if gpu_bytes is None else total <= USABLE * gpu_bytes
    return Estimate(per_gpu_bytes=total, gpu_bytes=gpu_bytes, fits=fits, breakdown=breakdown)


def trained_parameters(shape: ModelShape, tuning: Tuning) -> int:
    """Return how many parameters are trained."""
    if tuning.method is Method.FULL:
        return shape.parameters()
    return adapter_parameters(shape, rank=tuning.lora.rank, targets=tuning.lora.target_modules)


def adapter_parameters(shape: ModelShape, *, rank: int, targets: Iterable[str] = (ALL_LINEAR,)) -> int:
    """Return the parameters of the two matrices on each target: rank x (inputs + outputs)."""
    linears = shape.linears()
    wanted = set(targets)
    # A name that is not known here counts as the widest layer: rather too much than too little.
    widest = max(inputs + outputs for inputs, outputs in linears.values())
    known = {name: inputs + outputs for name, (inputs, outputs) in linears.items()}
    widths = known.values() if ALL_LINEAR in wanted else [known.get(name, widest) for name in wanted]
    return shape.layers * rank * sum(widths)


def _weights(shape: ModelShape, tuning: Tuning) -> int:
    parameters, size = shape.parameters(), _size(tuning.precision)
    match tuning.method:
        case Method.LORA:
            return parameters * size
        case Method.QLORA:
            quantised = shape.linear_parameters()
            return (
                int(quantised * (NF4 + CONSTANTS[tuning.quantization.double_quant])) + (parameters - quantised) * size
            )
        case Method.FULL:
            return parameters * FLOAT


def _at_the_peak(shape: ModelShape, tuning: Tuning, trained: int) -> dict[str, int]:
    """Return what comes and goes, at the moment when it is most."""
    found = activations.count(
        shape,
        tuning.method,
        size=_size(tuning.precision),
        targets=tuning.lora.target_modules,
        micro_batch=tuning.micro_batch,
        length=tuning.sequence_length,
        packing=tuning.packing,
    )
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


def _copies(shape: ModelShape, tuning: Tuning, trained: int) -> int:
    """Return the bytes of the 16-bit copies that autocast makes of trained weights."""
    if tuning.precision is Precision.FLOAT32:
        return 0
    return _size(tuning.precision) * (shape.linear_parameters() if tuning.method is Method.FULL else trained)


def _size(precision: Precision) -> int:
    return 2 if precision is Precision.BFLOAT16 else FLOAT
