"""A model's shape, read from its config.json: what the memory estimate needs to know, and the number of parameters.

Families name the same things differently; what is not found gets the value that most decoders have. Experts are stored
as three-dimensional tensors, no linear layers of their own: all-linear tunes a mixture's attention (and its shared
expert, where there is one), and QLoRA quantises no more than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_contract.families import Family, family_of

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
    "shared_expert_size": ("shared_expert_intermediate_size",),
}


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
    shared_expert_size: int = 0
    window: int | None = None
    """Tokens that a layer with a sliding window looks back to."""
    sliding_share: float = 0.0
    """Share of the layers that have one."""
    attention_bias: bool = False
    """Biases in all attention layers, where config.json asks for them."""
    mlp_bias: bool = False

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
            tied=bool(found.get("tie_word_embeddings", family_of(family).tied)),
            experts=experts,
            expert_size=(_found(found, "expert_size") or intermediate) if experts else 0,
            shared_expert_size=_found(found, "shared_expert_size") or 0,
            window=_window(found),
            sliding_share=_sliding_share(found, family),
            attention_bias=found.get("attention_bias") is True,
            mlp_bias=found.get("mlp_bias") is True,
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
        return self.layout.gated

    @property
    def norms(self) -> int:
        """Norms of one layer as wide as its input."""
        return self.layout.norms

    @property
    def normed_heads(self) -> bool:
        """Whether queries and keys pass a norm of their own."""
        return self.layout.qk_norm is not None

    @property
    def layout(self) -> Family:
        """How the family lays out a layer."""
        return family_of(self.family)

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return the linear layers of one decoder layer: the name below the layer, inputs, outputs."""
        return self._attention() | (self._shared_expert() if self.experts else self._mlp())

    def linear_parameters(self) -> int:
        """Return the weights of the decoder's linear layers, which QLoRA quantises."""
        gate = self.hidden if self.shared_expert_size else 0
        return self.layers * (sum(inputs * outputs for inputs, outputs in self.linears().values()) + gate)

    def parameters(self) -> int:
        """Return the number of parameters, embeddings included."""
        layout = self.layout
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2) + (self.vocab if layout.head_bias else 0)
        if layout.learned_positions:
            embeddings += ((self.positions or 0) + layout.extra_positions) * self.hidden
        experts = self.experts * (3 * self.hidden * self.expert_size + self.hidden)
        final_norm = layout.norm_parts * self.hidden
        return embeddings + self.linear_parameters() + self.layers * (experts + self._small()) + final_norm

    def _attention(self) -> dict[str, tuple[int, int]]:
        layout, width = self.layout, self.query + 2 * self.key_value
        apart = {"q_proj": self.query, "k_proj": self.key_value, "v_proj": self.key_value}
        inwards = {layout.fused: width} if layout.fused else apart
        found = {f"{layout.attention}.{name}": (self.hidden, size) for name, size in inwards.items()}
        return found | {f"{layout.attention}.{layout.out}": (self.query, self.hidden)}

    def _mlp(self) -> dict[str, tuple[int, int]]:
        *inwards, down = self.layout.mlp
        # A gate in the same matrix as `up` makes that twice as wide.
        width = 2 * self.intermediate if self.layout.gated and len(inwards) == 1 else self.intermediate
        return dict.fromkeys(inwards, (self.hidden, width)) | {down: (self.intermediate, self.hidden)}

    def _shared_expert(self) -> dict[str, tuple[int, int]]:
        if not self.shared_expert_size:
            return {}
        wide, narrow = self.shared_expert_size, self.hidden
        inwards = dict.fromkeys(("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"), (narrow, wide))
        return inwards | {"mlp.shared_expert.down_proj": (wide, narrow)}

    def _small(self) -> int:
        """Return norms and biases of one layer."""
        layout = self.layout
        norms = layout.norms * layout.norm_parts * self.hidden
        match layout.qk_norm:
            case "head":
                norms += 2 * self.head_dim
            case "width":
                norms += self.query + self.key_value
        return norms + self._biases()

    def _biases(self) -> int:
        layout = self.layout
        found = self.query + 2 * self.key_value if layout.qkv_bias or self.attention_bias else 0
        found += self.hidden if layout.out_bias or self.attention_bias else 0
        if layout.mlp_bias or self.mlp_bias:
            found += sum(outputs for _, outputs in self._mlp().values())
        return found


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
    return family_of(family).sliding_share
