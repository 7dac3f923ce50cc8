"""Training that has gone wrong though every number is finite: a loss that shoots up and stays up, gradients that died.

One noisy batch is no divergence, so the rule asks for most of the last steps, and for losses above everything that was
ordinary. What is ordinary is measured where the run was at its best: the level is the lowest running median of the
loss, its scatter the median absolute deviation (both robust: half of a window may be outliers; Rousseeuw & Croux 1993,
doi:10.1080/01621459.1993.10476408). Holding on to the lowest level also finds a loss that climbs slowly, and the
highest ordinary loss of a longer window speaks for data of two kinds, whose rarer one is far above the median. A spike
that comes back by itself is left alone, as in pre-training (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1).

Everything is computed from the losses alone, which the loop's log keeps: a resumed run is fed with it.
"""

from __future__ import annotations

from collections import deque
from statistics import median

_WINDOW = 50
"""Steps that make up a level."""
_LONG_WINDOW = 200
"""Steps in which rare kinds of examples turn up."""
_LEAST = 20
"""Steps before there is a level: medians of fewer are too often low by chance."""
_DEVIATIONS = 4.0
_NORMAL = 1.4826
"""Standard deviation of a normal distribution with a median absolute deviation of 1."""
_RISE = 1.0
"""Nats that a loss must rise at least: a perplexity 2.7 times as high."""
RECENT = 10
ABOVE = 8
"""So many of the recent steps above the limit are a divergence."""

SMALLEST_NORMAL = 1.1754943508222875e-38
"""Of float32: a norm below it is zero or made of denormal numbers."""
_LEARNED = 1e-4
"""A loss below which gradients may well be zero: there is nothing left to learn."""
DEAD_STEPS = 5


class LossLevel:
    """Where the loss is, and how many of the recent steps were far above."""

    def __init__(self) -> None:
        self._ordinary: deque[float] = deque(maxlen=_LONG_WINDOW)
        self._recent: deque[bool] = deque(maxlen=RECENT)
        self._above_level = 0.0
        self.level: float | None = None
        """The lowest running median so far; None in the first steps."""

    @property
    def limit(self) -> float | None:
        """A loss above it is out of the ordinary."""
        return None if self.level is None else max(self.level + self._above_level, *self._ordinary)

    @property
    def steps_above(self) -> int:
        """How many of the recent steps were above the limit."""
        return sum(self._recent)

    @property
    def diverged(self) -> bool:
        """Whether so many steps were above that it is no chance."""
        return self.steps_above >= ABOVE

    @property
    def suspicious(self) -> bool:
        """Whether it may become a divergence: the newest step was above, or many of the recent ones."""
        return bool(self._recent and self._recent[-1]) or self.steps_above > RECENT // 2

    def observe(self, loss: float) -> None:
        """Take note of one step's loss."""
        limit = self.limit
        above = limit is not None and loss > limit
        self._recent.append(above)
        if not above:
            self._ordinary.append(loss)
            if len(self._ordinary) >= _LEAST:
                self._settle()

    def _settle(self) -> None:
        window = list(self._ordinary)[-_WINDOW:]
        middle = median(window)
        if self.level is None or middle < self.level:
            scatter = _NORMAL * median(abs(loss - middle) for loss in window)
            self.level, self._above_level = middle, max(_DEVIATIONS * scatter, _RISE)


class GradientPulse:
    """Since how many steps the gradients are dead."""

    def __init__(self) -> None:
        self.dead_steps = 0

    @property
    def stopped(self) -> bool:
        """Whether nothing has been learned for so long that nothing will be."""
        return self.dead_steps >= DEAD_STEPS

    def observe(self, norm: float, *, loss: float) -> None:
        """Take note of one step's gradients' norm, before clipping."""
        dead = norm < SMALLEST_NORMAL and loss > _LEARNED
        self.dead_steps = self.dead_steps + 1 if dead else 0
