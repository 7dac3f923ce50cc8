"""What `benchmarks.gpu` measures: model shapes, data, and who trains on them with which settings."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

from benchmarks.estimate_settings import SHAPES as ESTIMATED

RANK = 16
"""Of LoRA, on all linear layers."""
TOKENS_A_STEP = 32768
LENGTH = 2048
MEAN = 280
"""Tokens of an instruction example."""
OURS, TRL, UNSLOTH = "ours", "TRL", "Unsloth"

SHAPES: dict[str, dict[str, Any]] = {
    **ESTIMATED,
    "qwen3-8b": {"model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
                 "tie_word_embeddings": False},
    "gemma3-12b": {"model_type": "gemma3_text", "hidden_size": 3840, "intermediate_size": 15360,
                   "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
                   "query_pre_attn_scalar": 256, "vocab_size": 262208, "sliding_window": 1024},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Data:
    """Examples: how many make a step, and how long they are."""

    name: str
    batch: int
    longest: int
    instructions: bool = False
    """Lognormal lengths, the second half of each an answer, on which the loss is taken."""

    def lengths(self, steps: int) -> list[int]:
        """Return the tokens of each example for so many steps."""
        if not self.instructions:
            return [self.longest] * (self.batch * steps)
        dice = random.Random(0)  # noqa: S311
        found = (int(dice.lognormvariate(math.log(MEAN) - 0.32, 0.8)) for _ in range(self.batch * steps))
        return [min(max(one, 16), self.longest) for one in found]


FIXED = Data("fixed 2048", TOKENS_A_STEP // LENGTH, LENGTH)
INSTRUCTIONS = Data("instructions", 112, LENGTH, instructions=True)
SMOKE = Data("smoke", 4, 64)


@dataclass(frozen=True, slots=True)
class Side:
    """Who trains, and what the user of a peer has set; ours sets nothing."""

    who: str
    micro_batch: int = 2
    checkpointing: bool = False
    packing: bool = False

    @property
    def label(self) -> str:
        """Name it in tables."""
        if self.who == OURS:
            return OURS
        parts = [f"micro-batch {self.micro_batch}", *["checkpointing"] * self.checkpointing, *["packed"] * self.packing]
        return f"{self.who}, {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Case:
    """One line-up: the same model, tokens and steps for all sides."""

    name: str
    shape: str
    base: str
    """bf16, fp8 or nf4."""
    data: Data
    sides: tuple[Side, ...]
    memory_gb: float | None = None
    """What the card is made to have, by a limit of the allocator."""
    long_run: bool = False
    """As a run of more than ten minutes is after a minute: with what is loaded beside the steps of such a run alone."""


_OURS, _GUIDE = Side(OURS), Side(TRL, checkpointing=True)
_SMALL, _LARGE = Side(UNSLOTH), Side(UNSLOTH, micro_batch=8)
_PACKED = Side(UNSLOTH, packing=True)
_ONE, _SAVING = Side(UNSLOTH, micro_batch=1, checkpointing=True), Side(UNSLOTH, checkpointing=True)


def _long(tokens: int) -> Case:
    data = Data(f"fixed {tokens}", 2, tokens)
    return Case(f"8B NF4 {tokens >> 10}k", "llama-8b", "nf4", data, (_OURS, Side(UNSLOTH, micro_batch=1), _ONE))


CASES = (
    Case("8B bf16", "llama-8b", "bf16", FIXED, (_OURS, _SMALL, _LARGE, _GUIDE)),
    Case("8B NF4", "llama-8b", "nf4", FIXED, (_OURS, _LARGE, _SMALL, _GUIDE)),
    Case("8B NF4 instructions", "llama-8b", "nf4", INSTRUCTIONS, (_OURS, _PACKED, Side(TRL, 8, checkpointing=True))),
    Case("8B NF4 instructions, long run", "llama-8b", "nf4", INSTRUCTIONS, (_OURS,), long_run=True),
    Case("8B bf16 instructions", "llama-8b", "bf16", INSTRUCTIONS, (_OURS, _PACKED)),
    Case("8B FP8", "llama-8b", "fp8", FIXED, (_OURS,)),
    Case("8B FP8 instructions", "llama-8b", "fp8", INSTRUCTIONS, (_OURS,)),
    Case("Qwen 3 8B NF4", "qwen3-8b", "nf4", FIXED, (_OURS, _LARGE, _SMALL, _GUIDE)),
    Case("1B bf16", "llama-1b", "bf16", FIXED, (_OURS, _LARGE, _GUIDE)),
    Case("Gemma 3 12B NF4", "gemma3-12b", "nf4", FIXED, (_OURS, _SMALL, _GUIDE)),
    _long(16384),
    _long(32768),
    Case("8B NF4, 24 GB", "llama-8b", "nf4", FIXED, (_OURS, _SMALL, _SAVING), memory_gb=24),
    Case("8B NF4, 16 GB", "llama-8b", "nf4", FIXED, (_OURS, _SAVING), memory_gb=16),
)
SMOKE_CASE = Case("smoke", "tiny", "bf16", SMOKE, (_OURS, _GUIDE))


def flops_a_token(shape: dict[str, Any], *, length: int, counted: float) -> float:
    """Return what a token costs without recomputation: forward, and the gradients of inputs of a frozen model.

    Two products of each weight, attention over half the sequence (Korthikanti et al. 2022, arXiv:2205.05198,
    appendix A), the head for the share of tokens that count. LoRA's own are below 1 % and left out.
    """
    hidden, heads, layers = shape["hidden_size"], shape["num_attention_heads"], shape["num_hidden_layers"]
    width = shape.get("head_dim") or hidden // heads
    attention = hidden * width * (2 * heads + 2 * shape["num_key_value_heads"])
    weights = layers * (attention + 3 * hidden * shape["intermediate_size"])
    scores = layers * heads * width * length * (2 + 5) / 2  # two products forward, five backward, half of each
    found: float = 4 * (weights + counted * hidden * shape["vocab_size"]) + 2 * scores
    return found
