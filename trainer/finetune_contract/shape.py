"""A model's shape, read from its config.json: what the memory estimate needs to know, and the number of parameters.

Families name the same things differently; what is not found gets the value that most decoders have. Experts count as
stored; what is tuned of a mixture of experts is its attention, since its experts are no linear layers of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_NAMES: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_dim": ("head_dim",),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "vocab": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_size": ("moe_intermediate_size",),
}
_PLAIN_MLP = frozenset(
    {"gpt2", "gpt_neox", "gpt_neo", "gpt_bigcode", "gptj", "opt", "phi", "falcon", "bloom", "starcoder2", "codegen"}
)
"""Two matrices with an activation between, and biases; the others have a gate."""
_LEARNED_POSITIONS = frozenset({"gpt2", "gpt_neo", "gpt_bigcode", "opt"})
_TIED_BY_DEFAULT = frozenset(
    {"gpt2", "gpt_neo", "gpt_bigcode", "opt", "bloom", "falcon", "gemma", "gemma2", "gemma3", "gemma3_text"}
)
_FUSED = frozenset({"gpt2", "gpt_neox", "gpt_bigcode", "falcon", "bloom", "phi3"})
"""Query, key and value in one matrix."""
_FOUR_NORMS = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})
_NORMED_HEADS = frozenset({"qwen3", "qwen3_moe", "gemma3", "gemma3_text", "olmo2", "olmo3", "olmoe"})
"""Queries and keys pass a norm of their own."""
_SLIDING_SHARE = {"gemma2": 1 / 2, "gemma3": 5 / 6, "gemma3_text": 5 / 6, "olmo3": 3 / 4}
"""Layers with a sliding window, where config.json does not list them."""
_BIASED_QKV = frozenset({"qwen2", "qwen2_moe"})


class UnknownShapeError(ValueError):
    """config.json lacks what every decoder has."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder's dimensions."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    positions: int | None
    """Longest sequence that the model holds, where it says so."""
    tied: bool
    """Whether the output head is the embedding."""
    experts: int = 0
    expert_size: int = 0
    window: int | None = None
    """Tokens that a layer with a sliding window looks back to."""
    sliding_share: float = 0.0
    """Share of the layers that have one."""

    @classmethod
    def from_config_json(cls, config: dict[str, Any]) -> ModelShape:
        """Return the shape that a config.json describes. Raises UnknownShapeError, naming the field."""
        text = config.get("text_config")
        found = {**config, **text} if isinstance(text, dict) else config
        family = str(found.get("model_type", ""))
        hidden, heads = _needed(found, "hidden"), _needed(found, "heads")
        kv_heads = _found(found, "kv_heads") or (1 if found.get("multi_query") else heads)
        intermediate = _found(found, "intermediate") or 4 * hidden
        experts = _found(found, "experts") or 0
        return cls(
            family=family,
            hidden=hidden,
            layers=_needed(found, "layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=_found(found, "head_dim") or hidden // heads,
            intermediate=intermediate,
            vocab=_needed(found, "vocab"),
            positions=_found(found, "positions"),
            tied=bool(found.get("tie_word_embeddings", family in _TIED_BY_DEFAULT)),
            experts=experts,
            expert_size=(_found(found, "expert_size") or intermediate) if experts else 0,
            window=_window(found),
            sliding_share=_sliding_share(found, family),
        )

    @property
    def query(self) -> int:
        """Width of the queries."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of the keys and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.family not in _PLAIN_MLP

    @property
    def norms(self) -> int:
        """Norms of one layer as wide as its input."""
        return 4 if self.family in _FOUR_NORMS else 2

    @property
    def normed_heads(self) -> bool:
        """Whether queries and keys pass a norm of their own."""
        return self.family in _NORMED_HEADS

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return the linear layers of one decoder layer that an adapter can sit on: name, inputs, outputs."""
        attention = self._attention()
        if self.experts:
            return attention
        wide, narrow = self.intermediate, self.hidden
        if not self.gated:
            return attention | {"up_proj": (narrow, wide), "down_proj": (wide, narrow)}
        if self.family == "phi3":
            return attention | {"gate_up_proj": (narrow, 2 * wide), "down_proj": (wide, narrow)}
        return attention | {"gate_proj": (narrow, wide), "up_proj": (narrow, wide), "down_proj": (wide, narrow)}

    def linear_parameters(self) -> int:
        """Return the weights of all linear layers in the decoder, which QLoRA quantises; experts included."""
        dense = sum(inputs * outputs for inputs, outputs in self.linears().values())
        experts = self.experts * 3 * self.hidden * self.expert_size + self.experts * self.hidden
        return self.layers * (dense + experts)

    def parameters(self) -> int:
        """Return the number of parameters, embeddings included."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        if self.family in _LEARNED_POSITIONS:
            embeddings += (self.positions or 0) * self.hidden
        return embeddings + self.linear_parameters() + self.layers * self._small() + self.hidden

    def _attention(self) -> dict[str, tuple[int, int]]:
        out = {"o_proj": (self.query, self.hidden)}
        if self.family in _FUSED:
            return {"qkv_proj": (self.hidden, self.query + 2 * self.key_value)} | out
        keys = dict.fromkeys(("k_proj", "v_proj"), (self.hidden, self.key_value))
        return {"q_proj": (self.hidden, self.query)} | keys | out

    def _small(self) -> int:
        """Return norms and biases of one layer."""
        qkv = self.query + 2 * self.key_value
        if not self.gated:
            return 4 * self.hidden + qkv + 2 * self.hidden + self.intermediate
        return 2 * self.hidden + (qkv if self.family in _BIASED_QKV else 0)


def _found(config: dict[str, Any], what: str) -> int | None:
    for name in _NAMES[what]:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _needed(config: dict[str, Any], what: str) -> int:
    value = _found(config, what)
    if value is None:
        raise UnknownShapeError(f"config.json has no {_NAMES[what][0]}")
    return value


def _window(config: dict[str, Any]) -> int | None:
    size = config.get("sliding_window")
    return size if isinstance(size, int) and config.get("use_sliding_window", True) else None


def _sliding_share(config: dict[str, Any], family: str) -> float:
    if _window(config) is None:
        return 0.0
    listed = config.get("layer_types")
    if isinstance(listed, list) and listed:
        return listed.count("sliding_attention") / len(listed)
    return _SLIDING_SHARE.get(family, 1.0)
