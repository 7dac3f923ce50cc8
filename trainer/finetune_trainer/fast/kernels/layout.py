"""Where the documents of a flat micro-batch lie: one sequence without padding, and no attention between them.

The layout reaches the attention operation through this module and not through the compiled layers: as their input, the
document's bounds would make each number of documents another graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Layout:
    """The documents of one flat sequence."""

    starts: torch.Tensor
    """int32, (documents + 1,): where each begins, and the end of the last. On the device of the computation."""
    lengths: tuple[int, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(self.lengths)

    @property
    def equal(self) -> bool:
        """Whether all documents are as long: they are a batch then."""
        return len(set(self.lengths)) == 1


_now: list[Layout] = []


def current() -> Layout:
    """Return the layout of the pass that is being computed."""
    return _now[-1]


@contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """Compute a micro-batch, forward and backward, inside."""
    _now.append(layout)
    try:
        yield
    finally:
        _now.pop()
