"""One real cluster for all tests of this folder, and a namespace for each of them."""

import itertools
import time
from collections.abc import Iterator

import pytest

from dev.cluster import LocalCluster
from tests.cluster.bench import Bench, container, eventually, pod

NODES = 3
DOOMED = "node-2"  # lost and deleted at the start: pod garbage collection takes a minute
FIGURES: list[str] = []  # measured, shown at the end, never asserted: machines differ
_numbers = itertools.count()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for figure in FIGURES:
        terminalreporter.write_line(figure)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    started = time.monotonic()
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=NODES, gpus=4, with_s3=False)
    with cluster:
        FIGURES.append(f"control plane and {NODES} nodes ready after {time.monotonic() - started:.1f} s")
        _doom(cluster)
        yield cluster


@pytest.fixture
def bench(cluster: LocalCluster) -> Iterator[Bench]:
    namespace = f"test-{next(_numbers)}"
    cluster.api.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    eventually(lambda: cluster.api.get(accounts))
    yield Bench(cluster, namespace)
    cluster.api.request("DELETE", f"/api/v1/namespaces/{namespace}")


def _doom(cluster: LocalCluster) -> None:
    bench = Bench(cluster, "default")
    bench.create("pods", pod("doomed", container("sleep 600"), nodeName=DOOMED))
    bench.until("doomed", lambda found: found["status"].get("phase") == "Running")
    cluster.node(DOOMED).lose()
    cluster.api.request("DELETE", f"/api/v1/nodes/{DOOMED}")
