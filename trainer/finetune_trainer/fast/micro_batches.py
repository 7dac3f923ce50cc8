"""A step's examples as flat micro-batches: documents one after the other, without padding and without attention
between them.

A micro-batch holds as many documents as fit its tokens, whatever their number: with examples far shorter than the
longest, that is many. So tokens decide how much is computed at one time, and the examples of a step are dealt out anew
each time, evenly (longest first to the emptiest; Graham 1969, "Bounds on multiprocessing timing anomalies").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune_trainer.data.dataset import IGNORED, Row

MULTIPLE = 64
"""Tokens of a micro-batch are a multiple of it, for kernels that compute tiles; a document without loss fills it up."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One pass of a step."""

    input_ids: torch.Tensor
    """(1, tokens)"""
    position_ids: torch.Tensor
    """(1, tokens): counted from each document's start."""
    starts: torch.Tensor
    """int32, (documents + 1,): where each document begins, and the end of the last."""
    counted: torch.Tensor
    """Positions whose next token counts."""
    targets: torch.Tensor
    """Those next tokens."""
    lengths: tuple[int, ...]
    """Tokens of each document."""
    examples: int
    """Documents that are examples: the rest, one at most, fills up."""

    @property
    def tokens(self) -> int:
        """Tokens of examples."""
        return sum(self.lengths[: self.examples])

    def to(self, device: torch.device, *, non_blocking: bool = False) -> MicroBatch:
        """Return it on a device; accelerate calls it."""
        return self._each(lambda one: one.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> MicroBatch:
        """Return it in memory that a GPU reads while others compute; data loaders call it."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, act: Callable[[torch.Tensor], torch.Tensor]) -> MicroBatch:
        return replace(
            self,
            input_ids=act(self.input_ids),
            position_ids=act(self.position_ids),
            starts=act(self.starts),
            counted=act(self.counted),
            targets=act(self.targets),
        )


@dataclass(frozen=True, slots=True)
class StepCollator:
    """Makes a step's micro-batches of its examples."""

    tokens: int
    """Tokens of a micro-batch; an example that is longer has one of its own."""
    pad_token_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the micro-batches, and the labels of all examples, which Trainer counts those that count of."""
        examples = [_example(row) for row in rows]
        bins = pack([len(ids) for ids, _ in examples], limit=self.tokens)
        labels = torch.from_numpy(np.concatenate([after for _, after in examples]))
        micro_batches = [_flat([examples[index] for index in one], self.pad_token_id) for one in bins]
        # Trainer leaves the first label out: that of a token which follows nothing.
        return {"labels": torch.nn.functional.pad(labels, (1, 0), value=IGNORED)[None], "micro_batches": micro_batches}


def pack(lengths: Sequence[int], *, limit: int) -> list[list[int]]:
    """Return the examples' indices in bins of at most `limit` tokens.

    As few bins as can be, and equally full: the longest example that is left goes where there is most room.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    number = max(-(-sum(lengths) // limit), 1)
    while (found := _deal(order, lengths, number=number, limit=limit)) is None:
        number += 1
    return found


def _deal(order: list[int], lengths: Sequence[int], *, number: int, limit: int) -> list[list[int]] | None:
    """Return the bins; None if so many are too few. What is longer than a bin gets one of its own."""
    bins = [(0, at, list[int]()) for at in range(number)]
    for index in order:
        tokens, at, held = heappop(bins)
        if held and tokens + lengths[index] > limit:
            return None
        heappush(bins, (tokens + lengths[index], at, [*held, index]))
    return [sorted(held) for _, _, held in sorted(bins, key=lambda one: one[1]) if held]


_Example = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Tokens, and at each position the label of the token after it: none at the end."""


def _example(row: Row) -> _Example:
    labels = np.asarray(row["labels"], dtype=np.int64)
    return np.asarray(row["input_ids"], dtype=np.int64), np.append(labels[1:], IGNORED)


def filler() -> MicroBatch:
    """Return a small micro-batch of no examples, on which no loss is taken."""
    return replace(_flat([(np.zeros(MULTIPLE, np.int64), np.full(MULTIPLE, IGNORED))], 0), examples=0)


def flatten(rows: Sequence[Row], *, pad_token_id: int) -> MicroBatch:
    """Return examples as one flat sequence."""
    return _flat([_example(row) for row in rows], pad_token_id)


def _flat(examples: Sequence[_Example], pad_token_id: int) -> MicroBatch:
    lengths = [len(ids) for ids, _ in examples]
    missing = -sum(lengths) % MULTIPLE
    documents = lengths + [missing] * bool(missing)
    ids = np.concatenate([*(ids for ids, _ in examples), np.full(missing, pad_token_id)])
    after = np.concatenate([after for _, after in examples])
    starts = np.cumsum([0, *documents])
    counted = np.flatnonzero(after != IGNORED)
    return MicroBatch(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(np.arange(len(ids)) - np.repeat(starts[:-1], documents))[None],
        starts=torch.from_numpy(starts.astype(np.int32)),
        counted=torch.from_numpy(counted),
        targets=torch.from_numpy(after[counted]),
        lengths=tuple(documents),
        examples=len(lengths),
    )
