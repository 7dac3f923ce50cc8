"""From `kubectl apply` to weights with both images, as the manifests and the operator's pods have them run."""

from __future__ import annotations

import hashlib
import json

import pytest

from dev.cluster.local import LocalCluster
from dev.images.__main__ import image_name
from tests.support.jobs import RunningJob, make_manifest

pytestmark = pytest.mark.images


def test_apply_to_verified_weights(cluster: LocalCluster, operator: str, namespace: str, store) -> None:
    ref = {"secretRef": {"name": "s3"}}
    job = RunningJob(
        cluster,
        namespace,
        make_manifest(
            "bot",
            model={"uri": "s3://models/tiny", **ref},
            dataset={"uri": "s3://data/good.jsonl", **ref},
            output={"uri": "s3://outputs/bot", **ref},
            hyperparameters={"maxSteps": 6, "batchSize": 4, "learningRate": 1e-3},
            resources={"gpusPerNode": 0, "cpu": 1, "memory": "3Gi"},
            trainer={},
        ),
    )
    status = job.reaches("Succeeded", seconds=400)
    raw = stored(store, status["outputs"]["manifest"])
    assert hashlib.sha256(raw).hexdigest() == status["outputs"]["manifestSha256"]
    files = {item["path"]: item for item in json.loads(raw)["files"]}
    assert {"adapter/adapter_model.safetensors", "merged/config.json", "report.html"} <= set(files)
    for path, item in files.items():
        assert hashlib.sha256(stored(store, f"{status['outputs']['uri']}/{path}")).hexdigest() == item["sha256"], path
    assert status["resolved"]["image"] == image_name("trainer")
    assert status["progress"]["tokensPerSecond"] > 0  # posted to the operator's Service, over TLS
    containers = [status for pod in job.children("pods") for status in pod["status"]["containerStatuses"]]
    assert {container["containerID"].partition("://")[0] for container in containers} == {"podman"}


def stored(client, uri: str) -> bytes:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())
