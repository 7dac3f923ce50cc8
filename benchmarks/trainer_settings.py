"""What both sides of `benchmarks.trainer_bench` train: methods, numbers, and examples made from a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.prepare_bench import WORDS

RANK = 16
BATCH = 4
"""Examples an optimizer step."""
MICRO_BATCH = 2
STEPS = 5
"""Steps that are measured, the first included."""
PLANNED = STEPS + 1
"""Steps that a training is told to take: with its last one a trainer measures and stores what is no part of a step."""
WARM_UP = 1
"""First steps, whose time does not count: optimizer state and kernels' buffers are made in them."""
LONGEST = 512
"""Longest sequence in tokens: no example is as long, so that nothing is cut."""
SEED = 42
BETA = 0.1


@dataclass(frozen=True, slots=True)
class Setting:
    """One method."""

    name: str
    method: str
    learning_rate: float
    preference: bool = False
    precision: str = "bfloat16"

    @property
    def with_adapters(self) -> bool:
        """Whether the base model is frozen."""
        return self.method != "Full"


SETTINGS = {
    one.name: one
    for one in (
        Setting("LoRA", "LoRA", 2e-4),
        Setting("QLoRA", "QLoRA", 2e-4),
        Setting("Full", "Full", 1e-5),
        # Its loss hangs on small differences of sums over whole answers: in bfloat16 they are mostly rounding.
        Setting("DPO", "LoRA", 5e-6, preference=True, precision="float32"),
    )
}


def examples(count: int, *, preference: bool, seed: int) -> Iterator[dict[str, Any]]:
    """Yield conversations of 20 to 400 tokens, short ones more often (log-uniform), or pairs with the same prompts."""
    dice = random.Random(seed)  # noqa: S311
    for number in range(count):
        words = round(math.exp(dice.uniform(math.log(18), math.log(320))))
        asked = {"role": "user", "content": f"{number}: {_text(dice, words // 3)}?"}
        good, bad = (
            [{"role": "assistant", "content": f"{_text(dice, most)}."}] for most in (2 * words // 3, words // 2)
        )
        yield {"prompt": [asked], "chosen": good, "rejected": bad} if preference else {"messages": [asked, *good]}


def _text(dice: random.Random, words: int) -> str:
    return " ".join(dice.choices(WORDS, k=max(words, 2)))
