"""One whole cluster for this folder, and a proxy between its API server and the operator, where faults are made.

`make test` runs what takes seconds; what is marked `long` is run by `make test-faults`, with everything else here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dev.cluster.local import LocalCluster
from dev.operator import LocalOperator
from tests.support.api_proxy import ApiProxy
from tests.support.jobs import FAKE_TRAINER, RunningJob, make_manifest, new_namespace


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    run_dir = tmp_path_factory.mktemp("cluster")
    with LocalCluster(run_dir, nodes=2, gpus=8, images=FAKE_TRAINER, with_s3=False) as cluster:  # one may be lost
        LocalOperator(cluster).install()
        yield cluster


@pytest.fixture(scope="module")
def shared_proxy(cluster: LocalCluster) -> Iterator[ApiProxy]:
    with ApiProxy(cluster) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def operator(cluster: LocalCluster, shared_proxy: ApiProxy) -> Iterator[LocalOperator]:
    """An operator that reaches the API server by the proxy alone."""
    operator = LocalOperator(cluster, server=shared_proxy.server, progress_seconds="0.5", resync_seconds="15")
    operator.start()
    yield operator
    operator.stop()


@pytest.fixture
def proxy(shared_proxy: ApiProxy, operator: LocalOperator) -> Iterator[ApiProxy]:
    """The proxy, without a fault."""
    shared_proxy.forget()
    yield shared_proxy
    shared_proxy.forget()


@pytest.fixture
def namespace(cluster: LocalCluster) -> Iterator[str]:
    with new_namespace(cluster) as name:
        yield name


@pytest.fixture
def start(cluster, namespace):
    """Start a job whose stages end as a script tells."""
    return lambda script="", name="bot", **spec: RunningJob(cluster, namespace, make_manifest(name, script, **spec))
