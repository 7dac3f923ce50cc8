"""Jobs in a queue, on a real control plane; Kueue's side is played by a test controller (tests/support/kueue.py).

The walk is the one that was also made with a real Kueue (docs/adr/0016-kueue.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from dev.cluster.local import LocalCluster
from tests.support.jobs import RunningJob, make_manifest
from tests.support.kueue import KueueTestController

pytestmark = pytest.mark.usefixtures("operator")
GPU = "nvidia.com/gpu"
Start = Callable[..., RunningJob]


@pytest.fixture
def start(cluster: LocalCluster, namespace: str) -> Start:
    """Start a job of two GPUs in the queue `tuning`, which has two."""

    def start(name: str, script: str = "train=run", *, priority: str | None = None, **spec: Any) -> RunningJob:
        scheduling = {"queue": "tuning", **({"queuePriority": priority} if priority else {})}
        spec = {"scheduling": scheduling, "resources": {"gpusPerNode": 2}, **spec}
        return RunningJob(cluster, namespace, make_manifest(name, script, **spec))

    return start


@pytest.fixture
def kueue(cluster: LocalCluster) -> Iterator[Callable[[], None]]:
    """Have a Kueue come, when the test says so."""
    with ExitStack() as stack:
        controller = KueueTestController(cluster)
        yield lambda: (stack.enter_context(controller), None)[1]
    assert controller.errors == []


def make_queue(cluster: LocalCluster, namespace: str) -> None:
    """A queue of two GPUs, in which a higher priority takes from a lower one; the real Kueue takes the same objects."""
    quota = {"cpu": 64, "memory": "64Gi", GPU: 2}
    resources = [{"name": name, "nominalQuota": value} for name, value in quota.items()]
    group = {"coveredResources": list(quota), "flavors": [{"name": namespace, "resources": resources}]}
    preemption = {"withinClusterQueue": "LowerPriority"}
    spec = {"namespaceSelector": {}, "preemption": preemption, "resourceGroups": [group]}
    objects = [
        {"kind": "ResourceFlavor", "metadata": {"name": namespace}, "spec": {}},
        {"kind": "ClusterQueue", "metadata": {"name": namespace}, "spec": spec},
        {
            "kind": "LocalQueue",
            "metadata": {"name": "tuning", "namespace": namespace},
            "spec": {"clusterQueue": namespace},
        },
        {"kind": "WorkloadPriorityClass", "metadata": {"name": f"high-{namespace}"}, "value": 100},
    ]
    for body in objects:
        body["apiVersion"] = "kueue.x-k8s.io/v1beta2"
        cluster.kubectl("apply", "-f", "-", input=json.dumps(body))


def test_wait_admit_preempt_requeue_and_finish(start: Start, kueue, cluster: LocalCluster, namespace: str) -> None:
    low = start("low")
    low.until(lambda: reason(low) == "KueueNotServed", what="the missing Kueue")
    assert (low.status["phase"], low.children()[-1]["spec"]["suspend"]) == ("Queued", True)
    kueue()
    low.until(lambda: "doesn't exist" in low.condition("QuotaReserved")["message"], what="the missing queue")
    make_queue(cluster, namespace)
    assert low.reaches("Running")["queue"]["waitedSeconds"] >= 0
    assert low.condition("QuotaReserved")["status"] == "True"

    other = start("other")
    other.until(lambda: reason(other) == "WaitingForQuota", what="the wait for quota")
    assert f"insufficient unused quota for {GPU}" in other.condition("Ready")["message"]
    assert "waitingSince" in other.status["queue"]
    assert other.condition("Prepared")["status"] == "True"

    high = start("high", "train=nap", priority=f"high-{namespace}")
    low.until(lambda: reason(low) == "Preempted", what="preemption")
    high.reaches("Running")
    assert (low.status["phase"], low.condition("Stalled")["status"]) == ("Queued", "False")
    high.reaches("Succeeded")

    status = low.reaches("Running")
    assert (status["attempt"], status["restarts"]) == (1, {"failures": 0, "disruptions": 0})
    assert {"Preempted", "QuotaReserved"} <= set(low.events())

    low.patch(lifecycle={"suspend": True})
    low.reaches("Suspended")
    other.reaches("Running")
    low.patch(lifecycle={"suspend": False})
    low.until(lambda: reason(low) == "WaitingForQuota", what="its new place in the queue")
    assert (low.status["attempt"], low.status.get("lastFailure")) == (2, None)
    other.delete()
    low.reaches("Running")


def reason(job: RunningJob) -> str:
    """Why a job has no quota, in Kueue's word."""
    return str(job.condition("QuotaReserved").get("reason", ""))
