"""`up` and `down`: a cluster that outlives the command that started it.

One supervisor process owns all parts: it is the same `LocalCluster` in a session of its
own, and because every part is tied to it, killing the supervisor ends everything. In the
foreground the command itself is the supervisor.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dev.cluster import build
from dev.cluster.local import Backend, LocalCluster
from dev.cluster.parts import StartError, end_of
from dev.cluster.s3 import remove_sockets
from dev.cluster.state import Process, State

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 180.0
STOP_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What kind of cluster to start."""

    nodes: int = 1
    gpus_per_node: int = 0
    backend: Backend = "process"

    def flags(self) -> list[str]:
        """Return the same as flags of the command line."""
        return [f"--nodes={self.nodes}", f"--gpus-per-node={self.gpus_per_node}", f"--backend={self.backend}"]


def up(run_dir: Path, shape: Shape = Shape()) -> State:
    """Start a cluster in the background and return once it is ready; one that runs is left alone."""
    state = State.read(run_dir)
    if state is not None and state.ready and state.supervisor.is_alive():
        return state
    build.assets()  # here, where its progress is seen
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (run_dir / "up.log").open("wb") as log:
        command = [sys.executable, "-m", "dev.cluster", "up", "--foreground", f"--run-dir={run_dir.absolute()}"]
        supervisor = subprocess.Popen(
            [*command, *shape.flags()],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        return _wait_until_ready(run_dir, supervisor)
    except BaseException:
        Process.of("supervisor", supervisor.pid).end(patience=STOP_PATIENCE)
        supervisor.wait()
        raise


def down(run_dir: Path) -> bool:
    """End the cluster that runs in this folder; say whether there was one."""
    state = State.read(run_dir)
    if state is None:
        return False
    state.supervisor.end(patience=STOP_PATIENCE)
    for part in state.parts:  # tied to the supervisor: gone, unless something went very wrong
        part.end(patience=1.0)
    remove_sockets(run_dir / "s3")
    State.remove(run_dir)
    return True


def run_in_foreground(run_dir: Path, shape: Shape = Shape()) -> None:
    """Be the supervisor: start the cluster, watch it, and end it on Ctrl-C or SIGTERM."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    cluster = LocalCluster(run_dir, nodes=shape.nodes, gpus=shape.gpus_per_node, backend=shape.backend)
    supervisor = Process.of("supervisor", os.getpid())
    cluster.take_folder()
    State(supervisor).write(cluster.run_dir)  # before it is ready: `down` can end a start, too
    try:
        _supervise(cluster, supervisor)
    except KeyboardInterrupt:
        print("ended", flush=True)
    finally:
        State.remove(cluster.run_dir)


def summary(state: State) -> str:
    """Return the ways into a cluster, to be read by people and by `eval`."""
    lines = {"KUBECONFIG": state.kubeconfig} | state.s3
    return "\n".join(f"export {name}='{value}'" for name, value in lines.items())


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _supervise(cluster: LocalCluster, supervisor: Process) -> None:
    started = time.monotonic()
    with cluster:
        state = _describe(cluster, supervisor)
        state.write(cluster.run_dir)
        print(f"ready after {time.monotonic() - started:.1f} s\n{summary(state)}", flush=True)
        _watch(cluster)


def _describe(cluster: LocalCluster, supervisor: Process) -> State:
    return State(
        supervisor,
        parts=[Process.of(part.name, part.pid) for part in cluster.parts],
        ready=True,
        server=cluster.server,
        kubeconfig=str(cluster.kubeconfig),
        reachable_host=cluster.reachable_host,
        nodes=cluster.node_names,
        s3=cluster.s3.env,
    )


def _watch(cluster: LocalCluster) -> None:
    while True:
        time.sleep(1)
        for part in cluster.parts:
            if not part.is_alive():
                raise part.failure("ended, and the cluster with it")


def _wait_until_ready(run_dir: Path, supervisor: "subprocess.Popen[bytes]") -> State:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        state = State.read(run_dir)
        if state is not None and state.ready and state.supervisor.pid == supervisor.pid:
            return state
        if supervisor.poll() is not None:
            raise StartError(f"the cluster did not start:\n{end_of(run_dir / 'up.log', lines=60)}")
        time.sleep(0.1)
    raise StartError(f"the cluster was not ready after {START_TIMEOUT:.0f} s:\n{end_of(run_dir / 'up.log')}")
