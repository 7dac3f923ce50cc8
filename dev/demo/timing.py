"""How long each part took: said while it happens, and once more as a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Names and durations, in order."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.parts: list[tuple[str, float]] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @contextmanager
    def part(self, title: str) -> Iterator[None]:
        """Time what happens inside, and say so when it is done."""
        started = time.monotonic()
        print(f"{title} ...", flush=True)
        yield
        self.note(title, time.monotonic() - started)
        print(f"  done in {self.parts[-1][1]:.1f} s", flush=True)

    def note(self, title: str, seconds: float) -> None:
        """Add a duration that was measured elsewhere."""
        self.parts.append((title, seconds))

    def table(self) -> Iterator[str]:
        """Yield a line a part, and the total."""
        width = max(len(title) for title, _ in self.parts)
        for title, seconds in self.parts:
            yield f"{title:<{width}}  {clock(seconds):>7}"
        yield f"{'in all':<{width}}  {clock(self.elapsed):>7}"


def clock(seconds: float) -> str:
    """Return a duration as 1:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
