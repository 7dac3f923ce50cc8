"""How long the examples are: what decides maxSequenceLength and fills the histogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BUCKET = 128
MOST = 0.995


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts of the examples, uncut, in figures."""

    longest: int
    mean: float
    most: int
    """99.5 % of the examples are at most this long."""
    histogram: dict[str, int]


def measure(lengths: Sequence[int]) -> Lengths:
    """Return the figures of at least one length."""
    ordered = sorted(lengths)
    counts: dict[int, int] = {}
    for length in ordered:
        counts[length // BUCKET] = counts.get(length // BUCKET, 0) + 1
    return Lengths(
        longest=ordered[-1],
        mean=sum(ordered) / len(ordered),
        most=ordered[min(int(MOST * len(ordered)), len(ordered) - 1)],
        histogram={f"{n * BUCKET}-{(n + 1) * BUCKET - 1}": count for n, count in counts.items()},
    )
