"""One control plane for this folder, with the shipped CRDs; every test has a namespace of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.cluster.local import LocalCluster

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), backend="none", with_s3=False) as cluster:
        cluster.kubectl("apply", "--server-side", "-k", str(ROOT / "manifests"))
        for kind in ("finetunejobs", "finetuneprofiles"):
            cluster.kubectl("wait", "--for=condition=Established", "crd", f"{kind}.finetuning.dev", "--timeout=30s")
        yield cluster


@pytest.fixture
def namespace(cluster: LocalCluster) -> str:
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    return name
