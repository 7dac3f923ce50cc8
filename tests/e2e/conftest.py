"""One whole cluster for this folder: control plane, node, the shipped manifests, the operator under its own account.

The image `fake-trainer` stands for tests/support/fake_trainer; every other image is the real trainer of this checkout.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.cluster.local import LocalCluster
from dev.cluster.node.images import Image
from dev.operator import LocalOperator

FAKE_TRAINER = Path(__file__).resolve().parents[1] / "support" / "fake_trainer"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    images = {"fake-trainer": Image({"PYTHONPATH": str(FAKE_TRAINER)})}
    with LocalCluster(tmp_path_factory.mktemp("cluster"), gpus=8, images=images) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def operator(cluster: LocalCluster) -> Iterator[LocalOperator]:
    with LocalOperator(cluster, progress_seconds="0.5") as operator:
        yield operator


@pytest.fixture
def namespace(cluster: LocalCluster) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
