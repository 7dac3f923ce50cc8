"""One real cluster for all tests of this folder, and a namespace for each of them."""

import itertools
import time
from collections.abc import Iterator

import pytest

from dev.cluster import LocalCluster
from dev.cluster.node.images import Image
from tests.cluster.bench import Bench, container, eventually, is_running, pod

NODES = 4
# Lost at the very start, because it takes the control plane a while to notice and to act:
LOST = "node-2"  # a quarter of a minute until it is unreachable
DELETED = "node-3"  # a minute until the pods of a node that is gone are collected
FIGURES: list[str] = []  # measured, shown at the end, never asserted: machines differ
_numbers = itertools.count()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for figure in FIGURES:
        terminalreporter.write_line(figure)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    started = time.monotonic()
    cluster = LocalCluster(
        tmp_path_factory.mktemp("cluster"),
        nodes=NODES,
        gpus=4,
        with_s3=False,
        labels={"nvidia.com/gpu.product": "pretend"},
        images={"speaker": Image({"GREETING": "hello"}, ["sh", "-c", "echo $GREETING"], "/srv")},
        allowed_images=["trainer:*", "speaker:*"],
    )
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
    impatient = [
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
    ]
    for node in (LOST, DELETED):
        bench.create("pods", pod(f"on-{node}", container("sleep 600"), nodeName=node, tolerations=impatient))
    for node in (LOST, DELETED):
        bench.until(f"on-{node}", is_running)
        cluster.kubectl("cordon", node)  # until it is noticed, pods of other tests would be sent there
        cluster.node(node).lose()
    cluster.api.request("DELETE", f"/api/v1/nodes/{DELETED}")
