"""A cluster whose node runs our own images with podman, with the operator installed as the manifests ship it.

`make test-images`, after `make images`; needs root, podman and runc. Not part of `make test`: images take minutes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from dev.cluster.local import LocalCluster
from dev.images.__main__ import RUN_DIR, TARGETS, image_name
from dev.images.engine import find_engine
from tests.support.datasets import chats, lines
from tests.support.manifests import KUSTOMIZE, NAMESPACE
from tests.support.models import tiny_llama

RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    engine = find_engine(RUN_DIR)
    missing = [image_name(target) for target in TARGETS if not engine.has_image(image_name(target))]
    if missing:
        pytest.fail(f"{', '.join(missing)} not on this machine: make images")
    with LocalCluster(tmp_path_factory.mktemp("cluster"), backend="podman") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def operator(cluster: LocalCluster) -> str:
    """The name of the operator's Deployment, once its pod is ready: one, since pods share the host's ports here."""
    manifests = cluster.kubectl("kustomize", str(KUSTOMIZE))
    cluster.kubectl("apply", "--server-side", "-f", "-", input=_one_replica(manifests))
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    cluster.kubectl("label", "namespace", NAMESPACE, RESTRICTED, "--overwrite")
    cluster.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/finetune-operator", "--timeout=90s")
    return "finetune-operator"


@pytest.fixture
def namespace(cluster: LocalCluster) -> str:
    """A user's namespace under the restricted Pod Security standard, with the store's credentials."""
    cluster.kubectl("create", "namespace", "team")
    cluster.kubectl("label", "namespace", "team", RESTRICTED)
    literals = [f"--from-literal={name}={value}" for name, value in cluster.s3.env.items()]
    cluster.kubectl("-n", "team", "create", "secret", "generic", "s3", *literals)
    return "team"


@pytest.fixture(scope="session")
def store(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The object store with a tiny model and a data set in it."""
    client = cluster.s3.client()
    for bucket in ("models", "data", "outputs"):
        cluster.s3.create_bucket(bucket)
    for file in tiny_llama(tmp_path_factory.mktemp("model") / "tiny").iterdir():
        client.upload_file(str(file), "models", f"tiny/{file.name}")
    client.put_object(Bucket="data", Key="good.jsonl", Body=lines(chats(60)))
    yield client
    client.close()


def _one_replica(manifests: str) -> str:
    items = [item for item in yaml.safe_load_all(manifests) if item]
    for item in items:
        if item["kind"] == "Deployment":
            item["spec"]["replicas"] = 1
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
