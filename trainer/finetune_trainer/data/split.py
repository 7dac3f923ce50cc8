"""The held-out part: chosen by a hash of the prompt, before anything else is done with the data.

Equal prompts fall on the same side, so nothing that is trained on is measured. Whether an example is held out depends
on nothing but its own prompt and the fraction, so adding data never moves an old example to the other side; only in
data so small that one side would be empty does the nearest prompt move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

SPACE = 1 << 64


@dataclass(frozen=True, slots=True)
class Split:
    """Says of each example, by its number, whether it is held out."""

    keys: Sequence[int]
    limit: int
    """Examples whose key is below are held out."""
    by_whole: bool = False
    """All prompts are equal, so examples are told apart by prompt and answer."""

    def is_held_out(self, number: int) -> bool:
        """Whether the example of that number is held out."""
        return self.keys[number] < self.limit

    @property
    def held_out(self) -> int:
        """Examples that are held out."""
        return sum(key < self.limit for key in self.keys)


def choose_split(prompts: Sequence[int], wholes: Sequence[int], fraction: float) -> Split:
    """Split by prompts, or by whole examples where there is but one prompt. Raises DATASET_TOO_SMALL."""
    by_whole = len(np.unique(_digests(prompts))) == 1
    keys = wholes if by_whole else prompts
    lowest, highest = int(_digests(keys).min()), int(_digests(keys).max())
    if lowest == highest:  # one to train on, one to hold out
        raise TrainerError(
            ExitCode.DATASET_TOO_SMALL,
            f"The data set has {_count(len(keys))}, {'all equal' if len(keys) > 1 else 'and no other'}: "
            "at least two different ones are needed, one of them to be held out; 200 or more do good.",
        )
    # The smallest key is always held out and the largest always trained on.
    limit = min(max(int(fraction * SPACE), lowest + 1), highest)
    return Split(keys=keys, limit=limit, by_whole=by_whole)


def _digests(keys: Sequence[int]) -> Any:
    return np.asarray(keys, dtype=np.uint64)


def _count(examples: int) -> str:
    return "1 example" if examples == 1 else f"{examples} examples"
