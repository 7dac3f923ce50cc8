"""SIGTERM: how a run that must give way ends with its progress safe and with the exit code that says so.

While steps are trained, the signal only sets a flag: the step at hand ends, its checkpoint is stored, and then the
run stops. At any other time (fetching, evaluating, exporting) there is nothing to save, since every write is atomic
and every stage can be repeated: the signal stops the run at once.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """The flag that a signal sets, and whether it may interrupt whatever runs.

    Where a run has several processes, the flag counts inside of `deferred` only once all have agreed on it: they act
    on it at the same point, or they would wait for each other.
    """

    def __init__(self) -> None:
        self._told = threading.Event()
        self._agreed = threading.Event()
        self._deferred = False
        self.needs_agreement = False
        self.told_at: float | None = None
        """When this process was told to stop, on the monotonic clock."""

    @property
    def requested(self) -> bool:
        """Whether the run stops at its next safe point."""
        return self._agreed.is_set() if self.needs_agreement and self._deferred else self.told

    @property
    def told(self) -> bool:
        """Whether this process has been told to stop."""
        return self._told.is_set()

    def request(self) -> None:
        """Tell this process to stop."""
        self.told_at = self.told_at or time.monotonic()
        self._told.set()

    def agree(self) -> None:
        """Stop at the next safe point: some process of the run was told to."""
        self._agreed.set()
        self.request()

    def check(self) -> None:
        """Stop here if told to: a safe point."""
        if self.requested:
            raise TrainerError(ExitCode.PREEMPTED, "Told to stop (SIGTERM); the next attempt goes on from here.")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let signals only set the flag inside, for code that looks at it and ends in good order."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def install(self) -> None:
        """Handle the signals from here on, until the process ends."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def finish(self) -> None:
        """Let no signal spoil the exit code of a stage that has had its last word."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.request()
        # A second Ctrl-C is meant: it ends the process as usual.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self._deferred:
            # Should a library swallow this, the flag is still there for the next safe point.
            self.check()


PREEMPTION = Preemption()
"""The process's one: signals are handled by process."""
