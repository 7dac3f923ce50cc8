"""From `kubectl apply` to verified outputs: the real operator, node, store and trainer, with a tiny random model.

What is checked is that the parts meet: numbers of quality belong to the demo, whose model is real.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.datasets import chats, lines
from tests.support.jobs import RunningJob, make_manifest
from tests.support.models import tiny_llama

pytestmark = pytest.mark.usefixtures("operator")
WAIT = 240
EXAMPLES = chats(60)


@pytest.fixture(scope="module")
def store(cluster, tmp_path_factory) -> Iterator[Any]:
    """The object store with a model and a data set in it."""
    client = cluster.s3.client()
    for bucket in ("models", "data", "outputs"):
        cluster.s3.create_bucket(bucket)
    folder = tiny_llama(tmp_path_factory.mktemp("model") / "tiny")
    for file in folder.iterdir():
        client.upload_file(str(file), "models", f"tiny/{file.name}")
    put(client, "good.jsonl", EXAMPLES)
    client.put_object(Bucket="data", Key="not-json.jsonl", Body=lines(EXAMPLES[:2]) + b"{broken\n")
    yield client
    client.close()


@pytest.fixture
def credentials(cluster, namespace) -> str:
    """A Secret with the store's credentials in the test's namespace, and one with wrong ones."""
    for secret, key in (("s3", cluster.s3.secret_key), ("wrong", "wrong-secret")):
        values = {**cluster.s3.env, "AWS_SECRET_ACCESS_KEY": key}
        literals = [f"--from-literal={name}={value}" for name, value in values.items()]
        cluster.kubectl("-n", namespace, "create", "secret", "generic", secret, *literals)
    return "s3"


@pytest.fixture
def start(cluster, namespace, store, credentials):
    """Start a job of the real trainer; its output lies under the test's namespace."""

    def start(name: str = "bot", *, data: str = "good.jsonl", **spec: Any) -> RunningJob:
        ref = {"secretRef": {"name": credentials}}
        fields = {
            "model": {"uri": "s3://models/tiny", **ref},
            "dataset": {"uri": f"s3://data/{data}", **ref},
            "output": {"uri": f"s3://outputs/{namespace}", **ref},
            "hyperparameters": {"maxSteps": 6, "batchSize": 4, "learningRate": 1e-3},
            "resources": {"gpusPerNode": 0, "cpu": 1},  # two threads on two busy cores wait for each other
            "trainer": {},
            **spec,
        }
        return RunningJob(cluster, namespace, make_manifest(name, **fields))

    return start


def put(client: Any, name: str, records: list[dict[str, Any]]) -> None:
    client.put_object(Bucket="data", Key=name, Body=lines(records))


def stored(client: Any, uri: str) -> bytes:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())


def test_apply_to_verified_outputs(start, store) -> None:
    job = start()
    status = job.reaches("Succeeded", seconds=WAIT)
    outputs = status["outputs"]
    raw = stored(store, outputs["manifest"])
    assert hashlib.sha256(raw).hexdigest() == outputs["manifestSha256"]
    files = {item["path"]: item for item in json.loads(raw)["files"]}
    assert {"adapter/adapter_model.safetensors", "merged/config.json", "evaluation.json", "report.html"} <= set(files)
    for path, item in files.items():
        assert hashlib.sha256(stored(store, f"{outputs['uri']}/{path}")).hexdigest() == item["sha256"], path
    assert status["dataset"]["examples"] == 60
    assert status["progress"]["step"] == status["progress"]["totalSteps"] == 6
    assert status["evaluation"]["base"]["loss"] > 0
    assert status["estimate"]["perGpuBytes"] > 0
    assert status["resolved"]["training"]["learningRate"] == 1e-3


def test_an_evicted_run_goes_on_from_its_last_checkpoint(start) -> None:
    job = start(hyperparameters={"maxSteps": 4000, "batchSize": 4}, checkpoint={"everySteps": 5})
    job.until(lambda: (job.status.get("checkpoint") or {}).get("step", 0) >= 5, what="a checkpoint", seconds=WAIT)
    pod = next(item for item in job.children("pods") if item["metadata"]["labels"]["finetuning.dev/stage"] == "train")
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
    job._cluster.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction))
    job.until(lambda: job.status.get("attempt") == 2, what="attempt 2")
    assert job.status["lastFailure"]["class"] == "Disrupted"
    assert job.status["restarts"] == {"failures": 0, "disruptions": 1}
    job.until(lambda: (job.status.get("checkpoint") or {}).get("resumedFromStep", 0) >= 5, what="resume", seconds=WAIT)


def test_two_pods_train_one_model(start, store) -> None:
    job = start(
        resources={"nodes": 2, "gpusPerNode": 0, "cpu": 1},
        hyperparameters={"maxSteps": 4000, "batchSize": 4, "learningRate": 1e-3},
        checkpoint={"everySteps": 4},
        lifecycle={"gracePeriodSeconds": 60, "retries": {"backoffSeconds": 1}},
    )
    job.until(lambda: (job.status.get("checkpoint") or {}).get("step", 0) >= 4, what="a checkpoint", seconds=WAIT)
    ready = job.condition("PodsReady")
    assert (ready["status"], ready["message"]) == ("True", "2 of 2 pods")
    _, second = (pod for pod in job.children("pods") if pod["metadata"]["labels"]["finetuning.dev/stage"] == "train")
    job.kubectl("delete", "pod", second["metadata"]["name"], "--wait=false")
    # The first pod learns it from the second one, and both end with one checkpoint.
    job.until(lambda: job.status.get("attempt") == 2, what="attempt 2", seconds=WAIT)
    assert job.status["lastFailure"]["class"] == "Disrupted"
    job.until(lambda: (job.status.get("checkpoint") or {}).get("resumedFromStep", 0) >= 4, what="resume", seconds=WAIT)


def at(uri: str, *, ref: str = "s3") -> dict[str, Any]:
    return {"uri": uri, "secretRef": {"name": ref}}


BAD = [
    ("missing-file", {"data": "none.jsonl"}, "DatasetNotFound", "s3://data/none.jsonl"),
    ("not-json", {"data": "not-json.jsonl"}, "DatasetInvalid", "not-json.jsonl line 3"),
    ("missing-model", {"model": at("s3://models/none")}, "ModelNotFound", "s3://models/none"),
    ("missing-bucket", {"output": at("s3://no-such-bucket/x")}, "BucketNotFound", "no-such-bucket"),
    ("wrong-credentials", {"dataset": at("s3://data/good.jsonl", ref="wrong")}, "StorageAccessDenied", "dataset"),
]


@pytest.mark.parametrize(("spec", "reason", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_ends_in_prepare_with_a_sentence_that_helps(start, cluster, spec, reason, words) -> None:
    job = start(**spec)
    status = job.reaches("Failed", seconds=WAIT)
    assert status["lastFailure"]["reason"] == reason
    assert words in status["lastFailure"]["message"]
    assert status["lastFailure"]["stage"] == "prepare"
    everything = json.dumps(status) + job.kubectl("get", "events", "-o", "json")
    assert "wrong-secret" not in everything
    assert cluster.s3.secret_key not in everything


def test_another_jobs_results_are_never_overwritten_and_adopted_where_that_is_wanted(start, namespace) -> None:
    before = start().reaches("Succeeded", seconds=WAIT)["outputs"]
    second = start("second")
    status = second.reaches("Failed", seconds=WAIT)
    assert status["lastFailure"]["reason"] == "OutputExists"
    assert "output.uri" in status["lastFailure"]["message"]
    again = start("again", output={**at(f"s3://outputs/{namespace}"), "ifExists": "Adopt"})
    status = again.reaches("Succeeded", seconds=WAIT)
    assert (status["outputs"], again.condition("OutputsReady")["reason"]) == (before, "Adopted")
    assert [item["metadata"]["labels"]["finetuning.dev/stage"] for item in again.children()] == ["prepare"]


def test_a_full_disk_is_said(start) -> None:
    job = start(resources={"gpusPerNode": 0, "cpu": 1, "ephemeralStorage": "1Mi"}, lifecycle={"retries": {"max": 0}})
    status = job.reaches("Failed", seconds=WAIT)
    assert status["lastFailure"]["reason"] == "DiskFull"
    assert "ephemeralStorage" in status["lastFailure"]["message"]
