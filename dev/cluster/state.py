"""What a running cluster leaves on disk for `down` and `status`: `state.json`.

Processes are named by id *and* start time: after a crash the id may belong to somebody
else's process, which nobody may kill.
"""

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

FILE = "state.json"
START_TIME_FIELD = 19  # of /proc/PID/stat, counted after the command's closing bracket


@dataclass(frozen=True, slots=True)
class Process:
    """A process that cannot be mistaken for a later one with the same id."""

    name: str
    pid: int
    started: int

    @classmethod
    def of(cls, name: str, pid: int) -> Self:
        """Name a process that runs now."""
        return cls(name, pid, _start_time(pid) or 0)

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return _start_time(self.pid) == self.started

    def end(self, *, patience: float) -> None:
        """Ask it to end, and kill it once patience is over."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + patience
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


@dataclass(frozen=True, slots=True)
class State:
    """A cluster as seen from outside: its supervisor, its parts and the ways in."""

    supervisor: Process
    parts: list[Process] = field(default_factory=list)
    ready: bool = False
    server: str = ""
    kubeconfig: str = ""
    reachable_host: str = ""
    nodes: list[str] = field(default_factory=list)
    s3: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, run_dir: Path) -> Self | None:
        """Return the state kept in this folder, if there is one."""
        try:
            kept = json.loads((run_dir / FILE).read_text())
        except FileNotFoundError:
            return None
        kept["supervisor"] = Process(**kept["supervisor"])
        kept["parts"] = [Process(**part) for part in kept["parts"]]
        return cls(**kept)

    def write(self, run_dir: Path) -> None:
        """Keep the state; readers see the old one or the new one. It holds the S3 keys."""
        partial = run_dir / f"{FILE}.partial"
        partial.touch(mode=0o600)
        partial.write_text(json.dumps(asdict(self), indent=1))
        partial.rename(run_dir / FILE)

    @staticmethod
    def remove(run_dir: Path) -> None:
        """Forget the cluster."""
        (run_dir / FILE).unlink(missing_ok=True)


def _start_time(pid: int) -> int | None:
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] == "Z" else int(after_name[START_TIME_FIELD])
