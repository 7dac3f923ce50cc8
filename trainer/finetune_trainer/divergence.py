"""Training that has gone wrong though every number is finite: a loss that shoots up and stays up, gradients that died.

One noisy batch is no divergence, so the rules ask for several steps in a row, and for losses above everything that was
ordinary at the run's best level. The level is the lowest running median of the loss, its scatter the median absolute
deviation (both robust: half of a window may be outliers; Rousseeuw & Croux 1993, doi:10.1080/01621459.1993.10476408).
Holding on to the lowest level instead of the newest window also finds a loss that climbs slowly. A spike that comes
back by itself within those steps is left alone, as in pre-training (Chowdhery et al. 2022, arXiv:2204.02311, 5.1).

Everything is computed from the losses alone, which the loop's log keeps: a resumed run is fed with it.
"""

from __future__ import annotations

from collections import deque
from statistics import median

WINDOW = 50
"""Steps that make up a level."""
_LEAST = 20
"""Steps before there is one: medians of fewer are too often low by chance."""
_DEVIATIONS = 6.0
_NORMAL = 1.4826
"""Standard deviation of a normal distribution with a median absolute deviation of 1."""
_RISE = 1.0
"""Nats that a loss must rise at least: a perplexity 2.7 times as high."""
PATIENCE = 10
"""Steps in a row above the limit that are a divergence."""

SMALLEST_NORMAL = 1.1754943508222875e-38
"""Of float32: a norm below it is zero or made of denormal numbers."""
_LEARNED = 1e-4
"""A loss below which gradients may well be zero: there is nothing left to learn."""
DEAD_STEPS = 5


class LossLevel:
    """Where the loss is, and since how many steps it is far above."""

    def __init__(self) -> None:
        self._ordinary: deque[float] = deque(maxlen=WINDOW)
        self.level: float | None = None
        """The lowest running median so far."""
        self.limit: float | None = None
        """A loss above it is out of the ordinary."""
        self.steps_above = 0
        """Steps in a row whose loss was above the limit, up to the newest."""

    @property
    def diverged(self) -> bool:
        """Whether the loss has stayed above for so long that it is no chance."""
        return self.steps_above >= PATIENCE

    def observe(self, loss: float) -> None:
        """Take note of one step's loss."""
        if self.limit is not None and loss > self.limit:
            self.steps_above += 1
            return
        self.steps_above = 0
        self._ordinary.append(loss)
        if len(self._ordinary) >= _LEAST:
            self._settle()

    def _settle(self) -> None:
        middle = median(self._ordinary)
        if self.level is not None and middle >= self.level:
            return
        scatter = _NORMAL * median(abs(loss - middle) for loss in self._ordinary)
        self.level = middle
        # With data of two kinds the scatter of the common kind says nothing of the rare one; the maximum does.
        self.limit = max(*self._ordinary, middle + max(_DEVIATIONS * scatter, _RISE))


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
