"""Models for tests: SmolLM2 where truth matters, a tiny random Llama with its tokenizer where speed does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from dev.models import smollm2

__all__ = ["TOKENIZER_FILES", "smollm2", "tiny_llama"]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def tiny_llama(folder: Path, **changes: Any) -> Path:
    """Write a random Llama of 2 layers with SmolLM2's tokenizer as safetensors (under 2 s after torch's import)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 49152,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(smollm2() / name, folder / name)
    return folder
