"""Small random models of many families, as transformers itself builds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_contract.shape import ModelShape
from tests.support.prepared import EOS, PAD, WORDS, save_tokenizer

SMALL: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GPT2 = {"vocab_size": len(WORDS), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
ALL_HEADS = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
HEADS = {"head_dim": 16}
WINDOW = 8
"""Shorter than the examples, so that it matters."""

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True, **SMALL},
    "qwen3": {**SMALL, **HEADS},
    "mistral": {**SMALL, "sliding_window": WINDOW},
    "gemma3_text": {**SMALL, **HEADS, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "phi": SMALL,
    "phi3": SMALL,
    "olmo2": SMALL,
    "gpt2": GPT2,
    "mixtral": {**SMALL, **EXPERTS},
    "qwen3_moe": {**SMALL, **EXPERTS, **HEADS, "moe_intermediate_size": 16},
}
"""Those that are trained in tests."""
COUNTED: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, settings) for name, settings in FAMILIES.items()},
    "llama untied": ("llama", {**SMALL, "head_dim": 16}),
    "llama with biases": ("llama", {**SMALL, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", SMALL),
    "gemma": ("gemma", {**SMALL, **HEADS}),
    "gemma2": ("gemma2", {**SMALL, **HEADS}),
    "olmo": ("olmo", SMALL),
    "gpt_neox": ("gpt_neox", ALL_HEADS),
    "gpt_bigcode": ("gpt_bigcode", GPT2),
    "opt": ("opt", {**ALL_HEADS, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "starcoder2": ("starcoder2", SMALL),
    "qwen2_moe": (
        "qwen2_moe",
        {**SMALL, **EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 48},
    ),
}
"""Those whose parameters are counted, by the test's name."""


def make_model(family: str, settings: dict[str, Any], **kwargs: Any) -> Any:
    """Return a random model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    special = {"pad_token_id": PAD, "bos_token_id": EOS, "eos_token_id": EOS}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings, **special), **kwargs)


def save_family(family: str, folder: Path) -> Path:
    """Write a random model of a family with the tiny tokenizer."""
    make_model(family, FAMILIES[family]).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def shape_of(model: Any) -> ModelShape:
    """Return the shape as prepare sees it: from the JSON that transformers writes."""
    return ModelShape.from_config_json(json.loads(model.config.to_json_string()))
