"""Memory of one GPU at the peak of a training step, from the model's shape alone.

Counted for what the trainer does: LoRA on a base in the computing precision, QLoRA on NF4 (Dettmers et al. 2023: 4 bits
a weight, 0.127 more for doubly quantised constants, 0.5 without), adapters and whatever else is trained in float32 with
two AdamW moments, so 16 bytes a trained parameter (Rajbhandari et al. 2020, section 3); Full computes in bfloat16 under
autocast, which keeps a 16-bit copy of the weights for the backward pass.

Activations are the tensors that transformers' eager decoder layer saves for the backward pass, a token and a layer, as
Korthikanti et al. 2022 (section 4) count them, without the attention matrix, which SDPA does not keep: two float32
copies in each of two norms, the normalised inputs, queries, keys, values and their result, and four tensors as wide as
the MLP. With recomputation only each layer's input is kept, and one layer's tensors at a time. The loss is taken in
chunks of tokens (TRL's fused head), so full logits never exist.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from finetune_contract.prepared import Estimate
from finetune_contract.shape import ModelShape
from finetune_contract.spec import Lora, Method, Precision, Quantization

GIB = 1 << 30
RUNTIME = GIB
"""CUDA context, cuBLAS workspaces and what the allocator cannot use."""
USABLE = 0.95
"""Share of a GPU's memory that a training process gets to use."""
LOSS_CHUNK = 1024
"""Tokens of which logits exist at one time; each as 16-bit, as float32 and as their gradient."""
LOGIT_BYTES = 10
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


def estimate(shape: ModelShape, tuning: Tuning, *, gpu_bytes: int | None = None) -> Estimate:
    """Return the breakdown, and whether it fits where the GPU's memory is known."""
    trained = trained_parameters(shape, tuning)
    breakdown = {
        "weights": _weights(shape, tuning),
        "adapter": 0 if tuning.method is Method.FULL else FLOAT * trained,
        "gradients": FLOAT * trained,
        "optimizer": 2 * FLOAT * trained,
        "activations": _activations(shape, tuning),
        "logits": _logits(shape, tuning),
        "runtime": RUNTIME,
    }
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
            return parameters * (FLOAT + (size if size < FLOAT else 0))


def _activations(shape: ModelShape, tuning: Tuning) -> int:
    tokens, size = tuning.micro_batch * tuning.sequence_length, _size(tuning.precision)
    width = shape.intermediate if not shape.experts else 2 * shape.expert_size
    layer = 16 * shape.hidden + size * (2 * shape.hidden + 2 * shape.query + 2 * shape.key_value + 4 * width)
    if tuning.recompute:
        return tokens * (shape.layers * size * shape.hidden + layer)
    return tokens * shape.layers * layer


def _logits(shape: ModelShape, tuning: Tuning) -> int:
    tokens = min(tuning.micro_batch * tuning.sequence_length, LOSS_CHUNK)
    return tokens * shape.vocab * LOGIT_BYTES


def _size(precision: Precision) -> int:
    return 2 if precision is Precision.BFLOAT16 else FLOAT
