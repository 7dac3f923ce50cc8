"""The demo's processes: object store, control plane, node and operator, started in order and ended together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dev.cluster import build
from dev.cluster.local import LocalCluster
from dev.cluster.parts import Part, StartError
from dev.cluster.s3 import S3Server
from dev.cluster.state import Process
from dev.demo.access import Access
from dev.demo.seed import fill_claim, fill_store, set_up_platform
from dev.demo.timing import Stopwatch
from dev.models import smollm2
from dev.operator import LocalOperator
from finetune_operator.cli.verify import human_bytes


@dataclass(frozen=True, slots=True)
class Running:
    """What has been started."""

    access: Access
    parts: Sequence[Part]
    operator_pid: int | None = None

    def processes(self) -> list[Process]:
        """Name every process, so that whoever ends them can tell that they are gone."""
        named = [Process.of(part.name, part.pid) for part in self.parts]
        return named + ([Process.of("operator", self.operator_pid)] if self.operator_pid else [])

    def watch(self) -> None:
        """Wait until a process ends that should not. Raises StartError."""
        check = self.check()
        while True:
            check()
            time.sleep(1)

    def check(self) -> Callable[[], None]:
        """Return what raises StartError once a process has ended that should not."""
        processes = self.processes()

        def check() -> None:
            for process in processes:
                if not process.is_alive():
                    raise StartError(f"{process.name} has ended, and everything with it")

        return check


def build_all(watch: Stopwatch, *, control_plane: bool = True) -> None:
    """Have what is built once and cached: minutes the first time, nothing afterwards."""
    with watch.part("building what is not in the cache: the model" + (", the control plane" if control_plane else "")):
        if control_plane:
            build.assets()
        smollm2()


@contextmanager
def running_cluster(run_dir: Path, watch: Stopwatch) -> Iterator[Running]:
    """Run a cluster with operator, object store, model, data, credentials and profile."""
    with ExitStack() as stack:
        with watch.part("starting control plane, node and object store"):
            cluster = stack.enter_context(LocalCluster(run_dir))
        with watch.part("installing the manifests, starting the operator under its ServiceAccount"):
            operator = stack.enter_context(LocalOperator(cluster, progress_seconds="1"))
        _fill(cluster.s3, run_dir, watch)
        set_up_platform(cluster)
        yield Running(Access(cluster.kubeconfig, cluster.s3.env), cluster.parts, operator.pid)


@contextmanager
def running_store(run_dir: Path, watch: Stopwatch) -> Iterator[Running]:
    """Run the object store alone, with models and data: what `finetune run` needs for the examples."""
    with ExitStack() as stack:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with watch.part("starting the object store"):
            store = stack.enter_context(S3Server(run_dir))
        _fill(store, run_dir, watch)
        fill_claim(run_dir / "claims", run_dir)
        yield Running(Access(None, store.env), store.parts)


def _fill(store: S3Server, run_dir: Path, watch: Stopwatch) -> None:
    with watch.part("putting models and data into the object store"):
        size = fill_store(store, run_dir)
        print(f"  {human_bytes(size)}")
