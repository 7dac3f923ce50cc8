"""One whole cluster for this folder: control plane, node, the shipped manifests, the operator under its own account.

The image `fake-trainer` stands for tests/support/fake_trainer; every other image is the real trainer of this checkout.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dev.cluster.local import LocalCluster
from dev.operator import LocalOperator
from tests.support.jobs import FAKE_TRAINER, new_namespace


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), gpus=8, images=FAKE_TRAINER) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def operator(cluster: LocalCluster) -> Iterator[LocalOperator]:
    with LocalOperator(cluster, progress_seconds="0.5") as operator:
        yield operator


@pytest.fixture
def namespace(cluster: LocalCluster) -> Iterator[str]:
    with new_namespace(cluster) as name:
        yield name
