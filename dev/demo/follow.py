"""A FineTuneJob followed to its end as a person would: phase, step, loss and ETA, from its status alone.

On a terminal the last line is redrawn as a bar; elsewhere a line is printed when something has changed. Nothing is
read from pods or logs: what a user needs to know stands in the status.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dev.demo.access import Access
from dev.demo.timing import clock

ENDED = ("Succeeded", "Failed")
_WIDTH = 24
_LINE_EVERY = 5.0
_TOLD_BY = {"Pending": "Validated", "Preparing": "Prepared", "Starting": "PodsReady", "Failed": "Failed"}

Status = dict[str, Any]


@dataclass
class Follower:
    """What has been seen of a job so far."""

    phases: list[tuple[str, float]] = field(default_factory=list)
    """Each phase with the time at which it was first seen."""
    _started: float = field(default_factory=time.monotonic)
    _printed: float = 0.0
    _drawn: bool = False

    def see(self, status: Status) -> None:
        """Show a new status."""
        phase = status.get("phase", "Pending")
        if not self.phases or self.phases[-1][0] != phase:
            self.phases.append((phase, time.monotonic()))
            self._say(self._phase_line(phase, status))
        if phase == "Running" and status.get("progress"):
            self._show(progress_line(status["progress"], terminal=sys.stdout.isatty()))

    def durations(self) -> Iterator[tuple[str, float]]:
        """Yield how long each phase took."""
        for (phase, began), (_, ended) in zip(self.phases, self.phases[1:], strict=False):
            yield phase, ended - began

    def _phase_line(self, phase: str, status: Status) -> str:
        return f"[{clock(time.monotonic() - self._started)}] {phase}{_reason(phase, status)}"

    def _show(self, line: str) -> None:
        if sys.stdout.isatty():
            print(f"\r{line}\x1b[K", end="", flush=True)
            self._drawn = True
        elif time.monotonic() - self._printed > _LINE_EVERY:
            self._printed = time.monotonic()
            print(f"[{clock(time.monotonic() - self._started)}] {line}", flush=True)

    def _say(self, line: str) -> None:
        if self._drawn:
            print()
            self._drawn = False
        print(line, flush=True)


def follow(
    access: Access, name: str, *, namespace: str, patience: float, check: Callable[[], None]
) -> tuple[Status, Follower]:
    """Show a job until it has ended; return its last status. Raises TimeoutError, or what `check` raises."""
    follower, deadline = Follower(), time.monotonic() + patience
    while time.monotonic() < deadline:
        for status in _statuses(access, name, namespace):
            check()
            if status is None:
                continue
            follower.see(status)
            if status.get("phase") in ENDED:
                return status, follower
            if time.monotonic() > deadline:
                break
    raise TimeoutError(f"{name} has not ended after {clock(patience)}")


def progress_line(progress: dict[str, Any], *, terminal: bool) -> str:
    """Return step, loss and ETA in a line, with a bar for terminals."""
    percent = progress.get("percent", 0)
    filled = "#" * (_WIDTH * percent // 100)
    parts = [f"[{filled:.<{_WIDTH}}]"] if terminal else []
    parts.append(f"{percent:3d} %")
    if "step" in progress:
        parts.append(f"step {progress['step']}/{progress.get('totalSteps', '?')}")
    parts += [
        f"{title} {progress[key]:.4f}" for title, key in (("loss", "loss"), ("held out", "evalLoss")) if key in progress
    ]
    if "eta" in progress:
        parts.append(f"ETA {progress['eta']}")
    return "  ".join(parts)


def _statuses(access: Access, name: str, namespace: str) -> Iterator[Status | None]:
    """Yield the status now and at each change, and None every second without one, until the watch ends."""
    one_a_line = 'jsonpath={.status}{"\\n"}'
    watch = access.kubectl_stream("get", "ftj", name, "-n", namespace, "--watch", "-o", one_a_line)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_lines, args=(watch, lines), daemon=True)
    reader.start()
    try:
        yield from _parsed(lines)
    finally:
        watch.kill()
        watch.wait()
        reader.join()
        if watch.stdout:
            watch.stdout.close()


def _read_lines(watch: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in watch.stdout or ():
        lines.put(line)
    lines.put(None)


def _parsed(lines: queue.SimpleQueue[str | None]) -> Iterator[Status | None]:
    while True:
        try:
            line = lines.get(timeout=1)
        except queue.Empty:
            yield None
            continue
        if line is None:  # watches end now and then
            return
        yield json.loads(line) if line.strip() else {}


def _reason(phase: str, status: Status) -> str:
    kind = _TOLD_BY.get(phase)
    found = next((item for item in status.get("conditions", ()) if item["type"] == kind), None)
    return f": {found['message']}" if found and found.get("message") else ""
