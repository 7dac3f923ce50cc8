"""Whether two models differ on the same examples: paired bootstrap resampling (Koehn 2004, "Statistical Significance
Tests for Machine Translation Evaluation").

The examples are drawn with replacement, a thousand times, both models' scores of an example always together. The
interval holds the middle 95 % of the differences that come out: where zero lies inside, the data do not tell which
model is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RESAMPLES = 1000
LEVEL = 95.0
"""Per cent of the resamples that the interval holds."""
ENOUGH = 6
"""Fewer examples tell nothing: not even if all point one way, which five do by chance one time in sixteen."""
_SEED = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference, and where 95 % of its resamples lie."""

    value: float
    low: float
    high: float


def difference_of_means(base: Sequence[tuple[float, float]], tuned: Sequence[tuple[float, float]]) -> Interval:
    """Return tuned minus base of the mean by weight, from (sum, weight) an example and model.

    A score counts as (score, 1); a loss as (summed loss, tokens), so that the mean is one over all tokens.
    """
    import numpy

    pairs = numpy.array([[*before, *after] for before, after in zip(base, tuned, strict=True)], dtype=numpy.float64)
    low, high = numpy.percentile(_resampled(pairs), [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Interval(value=float(_difference(pairs.sum(axis=0))), low=float(low), high=float(high))


def _resampled(pairs: Any) -> Any:
    """Return the difference in each resample; the same ones at every attempt."""
    import numpy

    dice = numpy.random.default_rng(_SEED)
    examples = len(pairs)
    sums = [pairs[dice.integers(0, examples, size=examples)].sum(axis=0) for _ in range(RESAMPLES)]
    return [_difference(each) for each in sums]


def _difference(sums: Any) -> Any:
    base, base_weight, tuned, tuned_weight = sums
    return tuned / max(tuned_weight, 1e-9) - base / max(base_weight, 1e-9)
