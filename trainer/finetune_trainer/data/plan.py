"""What becomes of each example: trained on, and how often; held out; or left out.

The held-out part is settled first, by the split or by a given validation set; from then on nothing of it is trained
on. Every choice is made by digests, so that it depends on no order and on no other example.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.data.parts import Part
from finetune_trainer.data.split import choose_split
from finetune_trainer.data.survey import Survey
from finetune_trainer.errors import TrainerError

HELD_OUT = -1
LEFT_OUT = 0
MOST_OFTEN = 100
"""The largest weight of a source: it has to fit a byte."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The use of every example, by its number in reading order."""

    uses: array[int]
    """HELD_OUT, LEFT_OUT, or how often the example is trained on in an epoch."""
    keys: Sequence[int]
    """What the split was made by."""
    by_whole: bool
    """All prompts are equal, so examples are told apart by prompt and answer."""
    leaked: int = 0
    """Training examples removed, since their prompt stands in the given validation set."""

    @property
    def train_examples(self) -> int:
        """Examples of an epoch, each as often as it is trained on."""
        return int(np.maximum(np.frombuffer(self.uses, dtype=np.int8), 0).sum(dtype=np.int64))

    @property
    def held_out(self) -> int:
        """Examples that are held out."""
        return self.uses.count(HELD_OUT)


def choose_plan(seen: Survey, parts: Sequence[Part], *, fraction: float, max_samples: int | None = None) -> Plan:
    """Settle what becomes of each example. Raises DATASET_TOO_SMALL if one side would be empty."""
    prompts, wholes = (np.frombuffer(one, dtype=np.uint64) for one in (seen.prompts, seen.wholes))
    given = np.repeat([part.is_validation for part in parts], seen.sizes)
    used = given | _sample(wholes, ~given, max_samples)
    leaked = 0
    if given.any():
        by_whole = len(np.unique(prompts)) == 1
        keys = wholes if by_whole else prompts
        held = given
        twice = used & ~given & np.isin(keys, keys[given])
        used, leaked = used & ~twice, int(twice.sum())
        _must_remain(used & ~given, leaked)
    else:
        split = choose_split(prompts[used], wholes[used], fraction)
        by_whole = split.by_whole
        keys = wholes if by_whole else prompts
        held = used & (keys < split.limit)
    often = _copies(wholes, np.repeat([part.weight for part in parts], seen.sizes))
    uses = np.where(held, HELD_OUT, np.where(used, often, LEFT_OUT)).astype(np.int8)
    if not (uses > 0).any():
        raise TrainerError(
            ExitCode.DATASET_TOO_SMALL, "With these weights of dataset.sources no example is trained on: raise them."
        )
    return Plan(array("b", uses.tobytes()), seen.wholes if by_whole else seen.prompts, by_whole, leaked)


def _sample(wholes: Any, among: Any, most: int | None) -> Any:
    """Return a mask of at most so many examples, those with the smallest digests."""
    numbers = np.flatnonzero(among)
    if most is not None and most < len(numbers):
        numbers = numbers[np.argsort(wholes[numbers], kind="stable")[:most]]
    mask = np.zeros(len(wholes), dtype=bool)
    mask[numbers] = True
    return mask


def _copies(wholes: Any, weights: Any) -> Any:
    """Return how often each example counts: the whole part of its weight, and once more by chance of its digest."""
    whole = np.floor(weights)
    # The low half of the digest: the split looks at the high bits, and must not choose the same examples.
    chance = (wholes & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2**32
    return (whole + (chance < weights - whole)).astype(np.int8)


def _must_remain(train: Any, leaked: int) -> None:
    if not train.any():
        raise TrainerError(
            ExitCode.DATASET_TOO_SMALL,
            f"All {leaked} training examples have a prompt that stands in dataset.validation.uri, and are not trained "
            "on: give a validation set of other prompts, or remove it to have a part held out.",
        )
