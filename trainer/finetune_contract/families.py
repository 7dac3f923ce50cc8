"""How model families lay out a decoder layer: the names of its linear layers, and where biases and norms stand.

A family that is not listed has what most decoders have: queries, keys and values apart, a gate in the MLP, two norms
without biases. A test holds them against transformers' own models, to the last parameter; all but Bloom, Falcon, GLM-4,
OLMo 3 and OLMoE, which are nearly right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Family:
    """One layer's layout; names as transformers gives them below a layer."""

    attention: str = "self_attn"
    fused: str | None = None
    """Name of the one matrix for queries, keys and values, where they are not apart."""
    out: str = "o_proj"
    mlp: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    """Gate, up and down; up and down; or gate and up in one matrix, and down."""
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    norms: int = 2
    """Norms as wide as the model, a layer."""
    norm_parts: int = 1
    """Vectors a norm: scale, and shift."""
    qk_norm: Literal["head", "width"] | None = None
    """Norms of queries and keys: one head wide, or all heads wide."""
    sliding_share: float = 1.0
    """Share of the layers with the sliding window, where config.json has one and does not list them."""
    learned_positions: bool = False
    extra_positions: int = 0
    head_bias: bool = False
    tied: bool = False
    """Whether the output head is the embedding where config.json does not say."""


_USUAL = Family()
_PLAIN = Family(gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, norm_parts=2)
_GPT = replace(
    _PLAIN, attention="attn", fused="c_attn", out="c_proj", mlp=("mlp.c_fc", "mlp.c_proj"), learned_positions=True,
    tied=True,
)  # fmt: skip
_NEOX = replace(
    _PLAIN, attention="attention", fused="query_key_value", out="dense",
    mlp=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
)  # fmt: skip
_GEMMA_3 = Family(norms=4, qk_norm="head", sliding_share=5 / 6, tied=True)
_OLMO_2 = Family(qk_norm="width")
_QWEN_2 = Family(qkv_bias=True)
_QWEN_3 = Family(qk_norm="head")

FAMILIES: dict[str, Family] = {
    "qwen2": _QWEN_2,
    "qwen2_moe": _QWEN_2,
    "qwen3": _QWEN_3,
    "qwen3_moe": _QWEN_3,
    "gemma": Family(tied=True),
    "gemma2": Family(norms=4, sliding_share=1 / 2, tied=True),
    "gemma3": _GEMMA_3,
    "gemma3_text": _GEMMA_3,
    "olmo": Family(norm_parts=0),
    "olmo2": _OLMO_2,
    "olmo3": replace(_OLMO_2, sliding_share=3 / 4),
    "olmoe": _OLMO_2,
    "glm4": Family(norms=4, mlp=("mlp.gate_up_proj", "mlp.down_proj")),
    "phi": replace(_PLAIN, out="dense", mlp=("mlp.fc1", "mlp.fc2"), norms=1, head_bias=True),
    "phi3": Family(fused="qkv_proj", mlp=("mlp.gate_up_proj", "mlp.down_proj")),
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neox": _NEOX,
    "bloom": replace(_NEOX, attention="self_attention", tied=True),
    "falcon": replace(_NEOX, attention="self_attention", qkv_bias=False, out_bias=False, mlp_bias=False, tied=True),
    "opt": replace(_PLAIN, out="out_proj", mlp=("fc1", "fc2"), learned_positions=True, extra_positions=2, tied=True),
    "starcoder2": replace(_PLAIN, mlp=("mlp.c_fc", "mlp.c_proj")),
}


def family_of(model_type: str) -> Family:
    """Return the layout of a family, the usual one if it is not known."""
    return FAMILIES.get(model_type, _USUAL)
