"""What a forward pass leaves in memory for the backward pass, as transformers' eager decoders and PEFT compute it.

Counted tensor by tensor, a token and a layer, as Korthikanti et al. 2022 (section 4) do, for the three ways to train:

- Norms compute in float32 and keep their input so; where their weight is trained, their result, too.
- A linear layer keeps its input for the gradient of what is trained. PEFT's LoRA layer has autocast make a copy for
  each adapter; its 4-bit layer and layers with nothing trained share the input of their neighbours.
- SDPA keeps queries, keys, values, its result and no matrix of scores. But where it gets a mask (packing, or a sliding
  window shorter than the sequence) keys and values are repeated for each head, and the mask is kept as numbers: a token
  has one for each token of its sequence.
- The loss is taken by TRL's fused head, tile by tile: full logits never exist.

On the trainer's fast path (a GPU; `finetune_trainer.fast.path`) compiled layers keep less: `count_fast`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from finetune_contract.shape import ModelShape
from finetune_contract.spec import Method

FLOAT = 4
TILE_TOKENS, TILE_VOCAB = 4096, 32768
"""Tokens and words of which logits exist at one time (trl.kernels.chunked_logprob)."""
CHUNK = 1 << 29
"""Logits that exist at one time on the fast path (finetune_trainer.fast.kernels.loss)."""
EXPERTS_A_TOKEN = 2
# Tensors as wide as the MLP that the backward pass of one has at one time, in bytes a value: measured.
_BUFFER = {Method.LORA: 10, Method.QLORA: 6, Method.FULL: 6}


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes of a micro-batch."""

    layer: int
    """Kept by one decoder layer."""
    boundary: int
    """The input of one layer: all that recomputation keeps of it."""
    final: int
    """Kept by the last norm and by the head."""
    loss: int
    """Buffers of the head in the forward pass."""
    loss_backward: int
    """Buffers of the head in the backward pass, its gradients among them."""
    head_gradient: int
    """Gradient of a trained head that waits for the embedding's, with which it is shared."""
    buffers: int
    """Buffers of one layer in the backward pass."""


def count(
    shape: ModelShape,
    method: Method,
    *,
    size: int,
    weights: int,
    targets: Iterable[str],
    micro_batch: int,
    length: int,
    packing: bool,
    in_fp8: bool = False,
) -> Activations:
    """Return the bytes of a micro-batch of `micro_batch` sequences.

    `size` is that of a computed number in bytes, `weights` that of a weight which is trained: if larger, autocast makes
    copies to compute with, and what lies between the layers is as large.
    """
    tokens, hidden = micro_batch * length, shape.hidden
    full = method is Method.FULL
    residual = weights if full else size
    attention = _attention(shape, size, attended=tokens if packing else length, packing=packing and micro_batch > 1)
    copied = weights != size
    layer = _norms(shape, kept=weights * full) + _mlp(shape, size)
    layer += _inputs(shape, method, size=size, copied=copied, targets=targets)
    tile, head = _tile(shape, size, tokens=tokens, cast=full and copied), weights * shape.vocab * hidden * full
    return Activations(
        layer=tokens * (layer + attention),
        boundary=tokens * residual * hidden,
        final=tokens * hidden * (residual + FLOAT + weights * full),
        loss=tile,
        loss_backward=tile + tokens * hidden * (FLOAT + residual) + head,
        head_gradient=head * shape.tied,
        buffers=_buffers(shape, method, size=size, tokens=tokens) + in_fp8 * _in_eight(shape, tokens=tokens),
    )


def count_fast(shape: ModelShape, method: Method, *, size: int, tokens: int, in_fp8: bool = False) -> Activations:
    """Return the bytes of a flat micro-batch of so many tokens on the fast path.

    A layer keeps the inputs of its norms and of its linear layers once, queries, keys, values and the result of
    attention, and of a gated MLP gate and up; where it is trained whole, what it multiplies of both as well. With
    adapters the values, which attention keeps, are a part of one result and keep the queries and keys before their
    rotation, too. At 8B and 8,192 or 16,384 tokens that is within 2 % of what was measured on an H200: 122 KB a token
    and layer (docs/adr/0018-the-fast-path.md), 141 KB of the whole model (0019-full-fine-tuning-on-the-fast-path.md).
    """
    full = method is Method.FULL
    hidden, wide = shape.hidden, _width(shape) * ((2 + full) if shape.gated else 1)
    heads = (2 if full and not shape.normed_heads else 3) * (shape.query + shape.key_value)
    layer = (shape.norms + 2) * hidden + heads + wide + (0 if shape.gated else _width(shape))
    dequantised = size * hidden * shape.intermediate if method is Method.QLORA else 0
    chunk, head = size * min(tokens * shape.vocab, CHUNK), size * shape.vocab * hidden * full
    return Activations(
        layer=size * tokens * layer,
        boundary=size * tokens * hidden,
        final=tokens * hidden * (size + FLOAT),
        loss=chunk + 2 * size * tokens * hidden + dequantised + head,
        loss_backward=3 * size * tokens * hidden + dequantised + head,
        head_gradient=head * shape.tied,
        buffers=size * tokens * (3 * _width(shape) + 2 * hidden)
        + dequantised
        + in_fp8 * _in_eight(shape, tokens=tokens),
    )


def _in_eight(shape: ModelShape, *, tokens: int) -> int:
    """Return the bytes that the products of frozen weights in FP8 need for a while: the gradient as wide as the MLP,
    quantised, and the weight turned round.
    """
    wide = (2 if shape.gated else 1) * _width(shape)
    return tokens * wide + shape.hidden * wide


def _norms(shape: ModelShape, *, kept: int) -> int:
    return (FLOAT + kept) * (shape.norms * shape.hidden + (shape.query + shape.key_value if shape.normed_heads else 0))


def _inputs(shape: ModelShape, method: Method, *, size: int, copied: bool, targets: Iterable[str]) -> int:
    """Return the inputs that linear layers keep, beside the result of attention, which attention keeps itself."""
    fed = {name: inputs for name, (inputs, _) in _fed(shape, method, targets).items()}
    layout = shape.layout
    down, out = fed.pop(layout.mlp[-1], 0), fed.pop(f"{layout.attention}.{layout.out}", 0)
    if method is Method.QLORA or not copied:  # neighbours share one tensor
        return size * (shape.hidden * len({name.startswith(layout.attention) for name in fed}) + down)
    return size * (sum(fed.values()) + down + (out if method is Method.LORA else 0))


def _fed(shape: ModelShape, method: Method, targets: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return the linear layers with something trained; all of them, if a target's name is not known here."""
    linears, wanted = shape.linears(), set(targets)
    if method is Method.FULL or not wanted <= linears.keys():
        return linears
    return {name: widths for name, widths in linears.items() if name in wanted}


def _attention(shape: ModelShape, size: int, *, attended: int, packing: bool) -> int:
    """Return what SDPA keeps a token; `attended` is how many tokens one sees."""
    plain = 2 * shape.query + 2 * shape.key_value
    masked = 2 * (shape.query - shape.key_value) + attended
    return int(size * (plain + _masked_share(shape, attended, packing=packing) * masked))


def _mlp(shape: ModelShape, size: int) -> int:
    """Return gate, its activation and up; without a gate, what the activation gets."""
    return size * (3 if shape.gated else 1) * _width(shape)


def _width(shape: ModelShape) -> int:
    return shape.intermediate if not shape.experts else EXPERTS_A_TOKEN * shape.expert_size


def _masked_share(shape: ModelShape, attended: int, *, packing: bool) -> float:
    """Return the share of layers whose attention gets a mask. Padding gets none: it stands at the end."""
    if packing:
        return 1.0
    return shape.sliding_share if shape.window and attended >= shape.window else 0.0


def _tile(shape: ModelShape, size: int, *, tokens: int, cast: bool) -> int:
    """Return the fused head's buffers: a tile of logits, and the cast of its weights where they are float32."""
    words = min(shape.vocab, TILE_VOCAB)
    return size * words * (min(tokens, TILE_TOKENS) + (shape.hidden if cast else 0))


def _buffers(shape: ModelShape, method: Method, *, size: int, tokens: int) -> int:
    dequantised = size * shape.hidden * _width(shape) if method is Method.QLORA else 0
    return tokens * (_BUFFER[method] * size // 2 * _width(shape) + FLOAT * shape.hidden) + dequantised
