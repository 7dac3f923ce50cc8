"""An operator beside CRDs of another version: during an upgrade, and after it was taken back.

There is no earlier release yet, so the older CRD is today's without some fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dev.cluster.local import LocalCluster
from dev.operator import LocalOperator
from tests.support.jobs import RunningJob, make_manifest

NAME = "finetunejobs.finetuning.dev"
LACKING = {
    ("spec",): ("podTemplate",),
    ("status",): ("queue", "usage", "dataset"),
    ("status", "properties", "resolved"): ("defaults", "preparesInPod"),
}
"""Fields that the older version lacks, by the schema that they are in."""
WRITES = 'rest_client_requests_total{code="200",method="PATCH"}'


@pytest.fixture
def crd(cluster: LocalCluster) -> Iterator[Callable[..., None]]:
    """Put a version of the CRD there; at the end today's is back."""
    today = json.loads(cluster.kubectl("get", "crd", NAME, "-o", "json"))

    def put(*, older: bool) -> None:
        body = without_some_fields(today) if older else today
        body["metadata"].pop("resourceVersion", None)
        cluster.kubectl("replace", "-f", "-", input=json.dumps(body))

    yield put
    put(older=False)


def without_some_fields(crd: dict[str, Any]) -> dict[str, Any]:
    """Return the CRD without those fields, and without the rules that speak of them."""
    older: dict[str, Any] = json.loads(json.dumps(crd))
    root = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, names in LACKING.items():
        schema = root["properties"]
        for key in path[:-1]:
            schema = schema[key]
        for name in names:
            del schema[path[-1]]["properties"][name]
    for schema in (root, root["properties"]["spec"]):
        rules = schema.get("x-kubernetes-validations", [])
        schema["x-kubernetes-validations"] = [rule for rule in rules if "podTemplate" not in json.dumps(rule)]
    return older


def test_jobs_live_through_an_upgrade_of_the_crd_and_its_way_back(
    cluster: LocalCluster, operator: LocalOperator, namespace: str, crd: Callable[..., None]
) -> None:
    crd(older=True)
    before = RunningJob(cluster, namespace, make_manifest("before"))
    assert "dataset" not in before.reaches("Succeeded")
    crd(older=False)
    after = RunningJob(cluster, namespace, make_manifest("after"))
    assert "dataset" in after.reaches("Succeeded")
    crd(older=True)
    assert (before.status["phase"], after.status["phase"]) == ("Succeeded", "Succeeded")
    writes = operator.metrics()[WRITES]
    again = RunningJob(cluster, namespace, make_manifest("again"))
    again.reaches("Succeeded")
    # What the API server drops is not written again and again.
    assert operator.metrics()[WRITES] - writes < 20
