"""A progress line for the one thing that takes minutes: compiling Kubernetes.

A bar that is redrawn on a terminal; elsewhere (CI, a pipe) a plain line now and then,
because a log is read afterwards and carriage returns are noise in it.
"""

import sys
import time
from typing import TextIO

WIDTH = 30
LOG_EVERY = 15.0


class Progress:
    """Packages compiled so far, and the time it took."""

    def __init__(self, label: str, *, total: int, stream: TextIO | None = None) -> None:
        self.label = label
        self.total = max(total, 1)
        self.done = 0
        self.stream = stream or sys.stderr
        self._started = time.monotonic()
        self._shown = self._started

    def advance(self) -> None:
        """Count one more package."""
        self.done = min(self.done + 1, self.total)
        self.show()

    def show(self) -> None:
        """Draw the line again, or log it when it is time to."""
        if self.stream.isatty():
            self.stream.write(f"\r{self._bar()}\x1b[K")
            self.stream.flush()
        elif time.monotonic() - self._shown >= LOG_EVERY:
            self._shown = time.monotonic()
            print(self._line(), file=self.stream, flush=True)

    def finish(self, outcome: str) -> None:
        """Leave a last line behind."""
        start = "\r\x1b[K" if self.stream.isatty() else ""
        print(f"{start}{self.label}: {outcome} after {self._elapsed()}", file=self.stream, flush=True)

    def _line(self) -> str:
        return f"{self.label}: {self.done} of {self.total} packages, {self._elapsed()}"

    def _bar(self) -> str:
        filled = "#" * (WIDTH * self.done // self.total)
        return f"{self.label} [{filled:.<{WIDTH}}] {self.done}/{self.total} packages, {self._elapsed()}"

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return f"{minutes}:{seconds:02d}"
