"""SIGTERM: how a run that must give way ends with its progress safe and with the exit code that says so.

While steps are trained, the signal only sets a flag: the step at hand ends, its checkpoint is stored, and then the
run stops. At any other time (fetching, evaluating, exporting) there is nothing to save, since every write is atomic
and every stage can be repeated: the signal stops the run at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """The flag that a signal sets, and whether it may interrupt whatever runs."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._deferred = False

    @property
    def requested(self) -> bool:
        """Whether the run has been told to stop."""
        return self._requested.is_set()

    def request(self) -> None:
        """Tell the run to stop."""
        self._requested.set()

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
