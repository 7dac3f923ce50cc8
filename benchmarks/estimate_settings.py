"""What `estimate_bench` measures: published shapes, and the settings to train them with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LLAMA: dict[str, Any] = {
    "model_type": "llama", "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {**LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                 "num_attention_heads": 32, "tie_word_embeddings": True},
    "qwen2-1.5b": {"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
                   "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
                   "tie_word_embeddings": True},
    "llama-3b": {**LLAMA, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
                 "num_attention_heads": 24, "tie_word_embeddings": True},
    "gemma3-4b": {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
                  "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
                  "vocab_size": 262208, "sliding_window": 1024},
    "mistral-7b": {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                   "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768, "sliding_window": None,
                   "tie_word_embeddings": False},
    "llama-8b": {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                 "num_attention_heads": 32},
    "qwen3-14b": {"model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40,
                  "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
                  "tie_word_embeddings": False},
    "tiny": {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """One configuration."""

    shape: str
    method: str
    length: int
    micro_batch: int
    recompute: bool = False
    packing: bool = False
    rank: int = 16
    zero: int = 0
    """ZeRO stage."""
    offload: str = "none"
    gpus: int = 1


_L, _Q, _F = "LoRA", "QLoRA", "Full"
SETTINGS = (
    Setting("tiny", _L, 64, 2),
    Setting("llama-1b", _L, 512, 16),
    Setting("llama-1b", _L, 8192, 2),
    Setting("llama-1b", _Q, 512, 16, packing=True),
    Setting("llama-1b", _Q, 4096, 4),
    Setting("llama-1b", _F, 512, 8),
    Setting("llama-1b", _F, 2048, 4),
    Setting("llama-1b", _F, 8192, 1, recompute=True),
    Setting("qwen2-1.5b", _L, 2048, 4),
    Setting("qwen2-1.5b", _F, 1024, 4),
    Setting("llama-3b", _L, 2048, 4),
    Setting("llama-3b", _Q, 8192, 1),
    Setting("llama-3b", _F, 512, 2),
    Setting("llama-3b", _F, 2048, 2, recompute=True),
    Setting("gemma3-4b", _L, 1024, 4),
    Setting("gemma3-4b", _Q, 2048, 2),
    Setting("mistral-7b", _L, 4096, 1, rank=64),
    Setting("mistral-7b", _Q, 4096, 2),
    Setting("llama-8b", _L, 512, 8),
    Setting("llama-8b", _L, 2048, 4),
    Setting("llama-8b", _L, 8192, 1, recompute=True),
    Setting("llama-8b", _L, 2048, 4, packing=True),
    Setting("llama-8b", _Q, 2048, 4),
    Setting("llama-8b", _Q, 8192, 1),
    Setting("llama-8b", _Q, 2048, 2, recompute=True),
    Setting("qwen3-14b", _L, 2048, 2),
    Setting("qwen3-14b", _L, 4096, 2, recompute=True),
    Setting("qwen3-14b", _Q, 2048, 2),
    Setting("qwen3-14b", _Q, 8192, 1, recompute=True),
)
SHARED = (
    Setting("llama-1b", _F, 2048, 4, zero=1, gpus=2),
    Setting("llama-1b", _F, 2048, 4, zero=2, gpus=2),
    Setting("llama-1b", _F, 2048, 4, zero=3, gpus=2),
    Setting("llama-3b", _F, 2048, 2, zero=2, gpus=2),
    Setting("llama-3b", _F, 2048, 2, zero=3, gpus=2),
    Setting("llama-3b", _F, 8192, 1, zero=2, gpus=2, recompute=True),
    Setting("llama-8b", _F, 2048, 2, zero=3, gpus=2, recompute=True),
    Setting("llama-8b", _L, 2048, 2, zero=3, gpus=2),
    Setting("llama-8b", _L, 2048, 4, zero=3, gpus=2, recompute=True),
    Setting("llama-3b", _F, 2048, 2, zero=2, offload="optimizer"),
    Setting("llama-3b", _F, 2048, 2, zero=3, offload="all"),
    Setting("llama-1b", _F, 2048, 4, zero=2),
    Setting("llama-1b", _F, 2048, 4, zero=3),
    Setting("llama-3b", _F, 2048, 2, zero=2, offload="optimizer", gpus=2),
    Setting("llama-3b", _F, 2048, 2, zero=3, offload="all", gpus=2),
    Setting("llama-1b", _Q, 512, 2, gpus=2),
    Setting("llama-1b", _Q, 512, 2, zero=3, gpus=2),
    Setting("llama-8b", _Q, 2048, 2, zero=3, gpus=2),
    Setting("llama-8b", _Q, 2048, 4, zero=3, gpus=2, recompute=True),
    Setting("qwen3-14b", _Q, 4096, 2, zero=3, gpus=2, recompute=True),
    Setting("qwen3-14b", _Q, 4096, 2, zero=3, offload="all", gpus=2, recompute=True),
)
"""What two GPUs, or one and its node, share out with DeepSpeed."""
