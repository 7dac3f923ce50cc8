"""Ends a rank that shows no sign of life: where a collective between GPUs hangs, its thread waits inside of CUDA.

Waits in the gloo group have limits of their own (`distributed`); this is for those that Python cannot leave.
"""

from __future__ import annotations

import threading
import time

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.environment import end_rank
from finetune_trainer.logs import log


class Watchdog:
    """A thread that ends the process when `alive` has not been called for too long, while it is on."""

    def __init__(self) -> None:
        self._seen: float | None = None
        self._off = threading.Event()

    def alive(self) -> None:
        """Take note that the work goes on."""
        if self._seen is not None:
            self._seen = time.monotonic()

    def start(self, *, limit: float) -> None:
        """Watch from here on; `limit` in seconds."""
        self._seen = time.monotonic()
        self._off.clear()
        threading.Thread(target=self._watch, args=(limit,), name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer."""
        self._seen = None
        self._off.set()

    def _watch(self, limit: float) -> None:
        while not self._off.wait(min(limit / 10, 1.0)):
            seen = self._seen
            if seen is not None and time.monotonic() - seen > limit:
                log.error("no sign of life for %.0f s: a collective hangs", limit)
                end_rank(ExitCode.COLLECTIVE_TIMEOUT)


WATCHDOG = Watchdog()
"""The process's one."""
