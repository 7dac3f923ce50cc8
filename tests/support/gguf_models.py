"""Small random models of the families that are tuned most, all with SmolLM2's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.support.models import TOKENIZER_FILES, smollm2

_SHAPE: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
_HEADS = {**_SHAPE, "head_dim": 16}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_SHAPE, "tie_word_embeddings": True},
    "qwen2": _SHAPE,
    "qwen3": _HEADS,
    "mistral": _HEADS,
    "gemma3_text": {**_HEADS, "sliding_window": 64, "query_pre_attn_scalar": 16},
    "phi3": {**_SHAPE, "num_key_value_heads": 4},
    "olmo2": _SHAPE,
    "gpt2": {"vocab_size": 49152, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 1,
             "eos_token_id": 2},
}  # fmt: skip
"""By model_type."""


def tiny_model_of(family: str, folder: Path, *, dtype: str = "float32") -> Path:
    """Write a random model of two layers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_" not in name:
                parameter.normal_(std=0.08)  # far enough from equal logits to compare them
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(smollm2() / name, folder / name)
    if family == "qwen2":
        _write_sentencepiece(folder / "tokenizer.model")
    return folder


def _write_sentencepiece(path: Path) -> None:
    """Write a SentencePiece model: transformers makes a Qwen 2 tokenizer of whatever lies in a qwen2 folder, and
    llama.cpp knows only the real one's hash.
    """
    import io

    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    words = [f"{word} {number}" for number, word in enumerate(dir(str) + dir(list) + dir(dict))]
    SentencePieceTrainer.train(sentence_iterator=iter(words), model_writer=model, vocab_size=120, minloglevel=2)
    path.write_bytes(model.getvalue())
