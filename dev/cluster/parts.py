"""A part of the cluster: one child process with a name, a log file and an end.

Everything that the cluster starts is a `Part`, so that one place sees to what must
hold for each: it dies with us even if we are killed, it does not see the terminal's
Ctrl-C, its output goes to a file, and a start that fails says which part it was and
shows the end of its log.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

TETHER = Path(__file__).with_name("tether.py")


class StartError(RuntimeError):
    """A part did not start; the message names it and ends with its log."""


class Part:
    """One child process of the cluster."""

    def __init__(self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The child's process id."""
        if self._process is None:
            raise StartError(f"{self.name} has not been started")
        return self._process.pid

    def start(self) -> None:
        """Start the child; its output is appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            spawning = _spawner(os.getpid()).submit(_spawn, self.command, log=log.fileno(), env=self.env)
            self._process = spawning.result()

    def is_alive(self) -> bool:
        """Whether the child runs."""
        return self._process is not None and self._process.poll() is None

    def wait_ready(self, ready: Callable[[], bool], *, timeout: float) -> None:
        """Ask until the part is ready; raise `StartError` when it dies or takes too long."""
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.is_alive():
                raise self.failure("ended while it was starting")
            if time.monotonic() > deadline:
                raise self.failure(f"was not ready after {timeout:.0f} s")
            time.sleep(0.05)

    def failure(self, what: str) -> StartError:
        """An error that names this part and shows how its log ends."""
        return StartError(f"{self.name} {what}; the end of {self.log}:\n{end_of(self.log)}")

    def stop(self, *, patience: float = 5.0) -> None:
        """End the child: SIGTERM, and SIGKILL once patience is over."""
        if self._process is None:
            return
        if self.is_alive():
            self._process.terminate()
        try:
            self._process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def end_of(log: Path, *, lines: int = 25) -> str:
    """Return the last lines of a log, indented."""
    text = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"  {line}" for line in text[-lines:]) or "  (empty)"


def plain_environment(**more: str) -> dict[str, str]:
    """The few variables of this machine that every child may see: no credentials, no kubeconfig."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ") if name in os.environ}
    return kept | more


def _spawn(command: Sequence[str], *, log: int, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    tethered = [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *command]
    # A session of its own: Ctrl-C reaches us alone, and we end the parts in order.
    return subprocess.Popen(
        tethered, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(env), start_new_session=True
    )


@cache
def _spawner(_process: int) -> ThreadPoolExecutor:
    """Return the one thread that starts all children, and never ends while this process lives.

    "Dies with its parent" means, to the kernel, with the *thread* that started it: a
    cluster started in a worker thread would vanish when that thread goes. Threads do not
    survive a fork, hence one a process.
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="part-spawner")
