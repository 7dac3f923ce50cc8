"""Cluster or store that outlive the command that started them, until `cluster-down` or `store-down`.

One supervisor in a session of its own holds all processes; each is tied to it, so that ending the supervisor ends
everything, however it ends. What it leaves on disk is the local cluster's own `state.json`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType

from dev.cluster import daemon
from dev.cluster.parts import StartError, end_of
from dev.cluster.state import Process, State
from dev.demo.access import Access
from dev.demo.running import Running, running_cluster, running_store
from dev.demo.timing import Stopwatch

ROOT = Path(__file__).resolve().parents[2]
RUN_DIR = ROOT / ".run"
_PATIENCE = 180.0
_LOG = "up.log"

WHAT: dict[str, Callable[[Path, Stopwatch], AbstractContextManager[Running]]] = {
    "cluster": running_cluster,
    "store": running_store,
}


def up(what: str, base: Path) -> tuple[Access, bool]:
    """Start it in the background and wait until it is ready; return the ways in, and whether it ran before."""
    run_dir = base / what
    state = State.read(run_dir)
    if state is not None and state.ready and state.supervisor.is_alive():
        return _access(state), True
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (run_dir / _LOG).open("wb") as log:
        command = [sys.executable, "-m", "dev.demo", f"--run-dir={base.absolute()}", "serve", what]
        supervisor = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        return _access(_wait_until_ready(run_dir, supervisor)), False
    except BaseException:
        Process.of("supervisor", supervisor.pid).end(patience=30)
        supervisor.wait()
        raise


def check(what: str, base: Path) -> Callable[[], None]:
    """Return what raises StartError once it has ended."""
    state = State.read(base / what)

    def check() -> None:
        if state is None or not state.supervisor.is_alive():
            raise StartError(f"the {what} has ended; see {base / what / _LOG}")

    return check


def down(what: str, base: Path) -> bool:
    """End it; say whether there was one."""
    return daemon.down(base / what)


def serve(what: str, base: Path) -> None:
    """Be the supervisor: start everything, watch it, and end it on SIGTERM."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    run_dir, supervisor = base / what, Process.of("supervisor", os.getpid())
    try:
        State(supervisor).write(run_dir)
        with WHAT[what](run_dir, Stopwatch()) as running:
            _describe(running, supervisor).write(run_dir)
            running.watch()
    except KeyboardInterrupt:
        print("ended", flush=True)
    finally:
        State.remove(run_dir)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _describe(running: Running, supervisor: Process) -> State:
    kubeconfig = running.access.kubeconfig
    return State(
        supervisor,
        parts=running.processes(),
        ready=True,
        kubeconfig=str(kubeconfig) if kubeconfig else "",
        s3=dict(running.access.s3),
    )


def _access(state: State) -> Access:
    return Access(Path(state.kubeconfig) if state.kubeconfig else None, state.s3)


def _wait_until_ready(run_dir: Path, supervisor: subprocess.Popen[bytes]) -> State:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and supervisor.poll() is None:
        state = State.read(run_dir)
        if state is not None and state.ready and state.supervisor.pid == supervisor.pid:
            return state
        time.sleep(0.1)
    raise StartError(f"it did not start; the end of {run_dir / _LOG}:\n{end_of(run_dir / _LOG, lines=40)}")
