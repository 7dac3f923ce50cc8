"""A FineTuneJob on a real cluster, as a test sees it."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dev.cluster.local import KubectlError, LocalCluster
from dev.cluster.node.images import Image

Body = dict[str, Any]
FAKE_TRAINER = {"fake-trainer": Image({"PYTHONPATH": str(Path(__file__).with_name("fake_trainer"))})}
"""The image that stands for tests/support/fake_trainer."""
STAGE = "finetuning.dev/stage"


def make_manifest(name: str, script: str = "", **spec: Any) -> Body:
    """Return a job for the fake trainer: the script tells each stage how to end."""
    return {
        "apiVersion": "finetuning.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "method": "LoRA",
            "model": {"uri": "s3://models/base"},
            "dataset": {"uri": f"s3://fake/{script or 'all=ok'}"},
            "output": {"uri": "s3://outputs/out"},
            "resources": {"gpusPerNode": 0},
            "lifecycle": {"gracePeriodSeconds": 5, "retries": {"backoffSeconds": 1}},
            "trainer": {"image": "fake-trainer"},
            **spec,
        },
    }


@contextmanager
def new_namespace(cluster: LocalCluster) -> Iterator[str]:
    """Make a namespace for one test; at the end it goes in the background."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


class RunningJob:
    """One FineTuneJob in the cluster."""

    def __init__(self, cluster: LocalCluster, namespace: str, manifest: Body) -> None:
        self._cluster, self.namespace, self.name = cluster, namespace, manifest["metadata"]["name"]
        cluster.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(manifest))

    @property
    def status(self) -> Body:
        """The status as it stands."""
        return dict(self.get("ftj", self.name).get("status", {}))

    def condition(self, kind: str) -> Body:
        """A condition as it stands, or nothing."""
        return next((c for c in self.status.get("conditions", []) if c["type"] == kind), {})

    def get(self, kind: str, name: str) -> Body:
        """Return an object of the job's namespace."""
        return dict(json.loads(self.kubectl("get", kind, name, "-o", "json")))

    def children(self, kind: str = "jobs") -> list[Body]:
        """Return the batch Jobs or pods of the job, oldest first."""
        found = json.loads(self.kubectl("get", kind, "-l", f"finetuning.dev/job={self.name}", "-o", "json"))["items"]
        return sorted(found, key=lambda item: (item["metadata"]["creationTimestamp"], item["metadata"]["name"]))

    def events(self) -> list[str]:
        """Return the reasons of the Events about the FineTuneJob."""
        selector = f"involvedObject.name={self.name},involvedObject.kind=FineTuneJob"
        found = json.loads(self.kubectl("get", "events", "--field-selector", selector, "-o", "json"))["items"]
        return [item["reason"] for item in found]

    def doubled(self) -> list[str]:
        """Return what there is more than one of, for a job whose one attempt was to do: Jobs, pods, Events, charges."""
        made = [
            f"{kind} {item['metadata']['labels'][STAGE]}" for kind in ("jobs", "pods") for item in self.children(kind)
        ]
        told = [f"event {reason}" for reason in self.events()]
        twice = [what for what, count in Counter(made + told).items() if count > 1]
        charged = self.status.get("restarts") not in ({"failures": 0, "disruptions": 0}, None)
        return twice + ["restarts"] * charged

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl in the job's namespace."""
        return self._cluster.kubectl("-n", self.namespace, *arguments)

    def patch(self, **spec: Any) -> None:
        """Change the spec."""
        self.kubectl("patch", "ftj", self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def delete(self, *flags: str) -> None:
        """Delete the FineTuneJob."""
        self.kubectl("delete", "ftj", self.name, *flags)

    def reaches(self, phase: str, *, seconds: float = 60) -> Body:
        """Wait for a phase and return the status."""
        self.until(lambda: self.status.get("phase") == phase, what=f"phase {phase}", seconds=seconds)
        return self.status

    def until(self, holds: Callable[[], bool], *, what: str, seconds: float = 60) -> None:
        """Wait until something holds; say how the job stands if it never does."""
        deadline = time.monotonic() + seconds
        while not self._asked(holds):
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{self.name}: no {what} within {seconds:.0f} s:\n{json.dumps(self.status, indent=1)}"
                )
            time.sleep(0.2)

    @staticmethod
    def _asked(holds: Callable[[], bool]) -> bool:
        try:
            return holds()
        except KubectlError:  # the object is not there, yet or any more
            return False
