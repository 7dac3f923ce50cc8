"""Attention kernels that take half a minute to come: they are loaded while steps are computed.

FlashAttention-4 is compiled in the process that calls it. On an H200 its import took 7 to 11 s and its kernels 7 to
10 s, which a run of some minutes never gets back. A longer one has it from the step on at which it is there, if it is
right and faster then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Thread

import torch

from finetune_trainer.fast.kernels import attention_cute
from finetune_trainer.fast.kernels.attention_choice import (
    FA4,
    Shape,
    attended,
    layout_of,
    random_inputs,
    reconsider,
)
from finetune_trainer.fast.kernels.attention_cute import Cute
from finetune_trainer.logs import log

WORTH_SECONDS = 600.0
"""Of steps that are left: a fortieth of them is saved with short documents, and the loading slows some steps down."""
_FIRST = 3
"""Steps by which their time is known; the first one compiles."""
_DOCUMENTS = (256, 128)


class Later:
    """Loads them for one model, and has them taken."""

    def __init__(
        self,
        load: Callable[[], None],
        take: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`load` runs in a thread of its own, `take` between two steps when that is done."""
        self._load, self._take, self._clock = load, take, clock
        self._begun: list[float] = []
        self._thread: Thread | None = None
        self._loaded = self._over = False

    def step_begins(self, *, left: int) -> None:
        """Note a step's beginning, with as many left. Nothing is computed between two steps but this."""
        if self._over:
            return
        if self._thread is None:
            self._consider(left)
        elif not self._thread.is_alive():
            self._over = True
            if self._loaded:
                self._take()

    def _consider(self, left: int) -> None:
        self._begun.append(self._clock())
        if len(self._begun) <= _FIRST:
            return
        seconds = (self._begun[-1] - self._begun[1]) / (_FIRST - 1)
        if seconds * left < WORTH_SECONDS:
            self._over = True
            return
        self._thread = Thread(target=self._loading, name="attention", daemon=True)
        self._thread.start()

    def _loading(self) -> None:
        try:
            self._load()
            self._loaded = True
        except Exception as error:  # another version of it, or no compiler: torch's kernels stay
            log.warning("%s is installed and cannot be used: %s: %s", FA4, type(error).__name__, error)


def later(shape: Shape) -> Later | None:
    """Return what loads newer kernels for a model on this process's card; None if there are none."""
    if torch.are_deterministic_algorithms_enabled() or not attention_cute.is_there():
        return None
    device = torch.cuda.current_device()

    def load() -> None:
        torch.cuda.set_device(device)  # each thread has its own
        backend, inputs = Cute(layout_of(_DOCUMENTS)), random_inputs(shape, sum(_DOCUMENTS))
        for window in {0, shape.window}:
            attended(backend, *inputs, window=window)

    return Later(load, lambda: reconsider(shape, FA4))
