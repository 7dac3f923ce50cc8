"""A fake Kubernetes API for the reconciler: resourceVersions, conflicts and taken names; no admission, no controllers.

A fake by name: what depends on the API server's own behaviour is tested on the real one.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from typing import Any

from finetune_operator.api import constants as c
from finetune_operator.api.views import ChildJob, JobView, PodView
from finetune_operator.policy.plan import EventRequest
from finetune_operator.runtime.gateway import ConflictError, Kind

Body = dict[str, Any]


class FakeGateway:
    """Implements `runtime.gateway.Gateway` in memory; `calls` lists the writes in their order."""

    def __init__(self) -> None:
        self.objects: dict[Kind, dict[tuple[str, str], Body]] = {
            kind: {} for kind in ("FineTuneJob", "FineTuneProfile", "Job", "Pod", "Workload", "Node")
        }
        self.calls: list[str] = []
        self.events: list[EventRequest] = []
        self.fail_next: Exception | None = None
        self.kueue = False
        self.refuses_pods = self.mounts_nothing = ""
        self._version = 100

    def add(self, kind: Kind, body: Body) -> Body:
        """Put an object there, with uid and resourceVersion."""
        self._version += 1
        meta = body["metadata"]
        meta.setdefault("uid", f"uid-{self._version}")
        meta["resourceVersion"] = str(self._version)
        self.objects[kind][(meta.get("namespace", ""), meta["name"])] = body
        return copy.deepcopy(body)

    async def list(self, kind: Kind) -> AsyncIterator[Body]:
        """Yield all objects of a kind."""
        for body in list(self.objects[kind].values()):
            yield copy.deepcopy(body)

    async def serves_kueue(self) -> bool:
        """Whether there is a Kueue."""
        return self.kueue

    async def watch_workloads(self) -> AsyncIterator[tuple[str, Body]]:
        """Yield the Workloads that are there; nothing happens to them."""
        async for body in self.list("Workload"):
            yield "ADDED", body

    async def get_job(self, namespace: str, name: str) -> Body | None:
        """Return a batch Job."""
        return copy.deepcopy(self.objects["Job"].get((namespace, name)))

    async def pods_of(self, job: JobView) -> tuple[Body, ...]:
        """Return the pods of a FineTuneJob."""
        pods = [body for body in self.objects["Pod"].values() if body["metadata"]["namespace"] == job.namespace]
        labelled = [pod for pod in pods if (pod["metadata"].get("labels") or {}).get(c.LABEL_JOB_UID) == job.uid]
        return tuple(copy.deepcopy(labelled))

    async def refusal_of_pods(self, child: ChildJob) -> str:
        """Return what pods of all Jobs are refused for."""
        return self.refuses_pods

    async def mount_failure_of(self, pod: PodView) -> str:
        """Return why pods get no volumes."""
        return self.mounts_nothing

    async def create_job(self, manifest: Body) -> Body:
        """Create a batch Job."""
        self._maybe_fail()
        key = (manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        if key in self.objects["Job"]:
            raise ConflictError("exists")
        self.calls.append(f"create {key[1]}")
        return self.add("Job", copy.deepcopy(manifest))

    async def create_service(self, manifest: Body) -> None:
        """Create a Service, if there is none of that name."""
        self.calls.append(f"service {manifest['metadata']['name']}")

    async def create_pod_group(self, manifest: Body) -> None:
        """Create a PodGroup, if there is none of that name."""
        self.calls.append(f"pod group {manifest['metadata']['name']} of {manifest['spec']['minMember']}")

    async def delete_job(self, namespace: str, name: str, *, uid: str) -> None:
        """Delete a batch Job, unless it is another one of its name."""
        self.calls.append(f"delete {name}")
        found = self.objects["Job"].get((namespace, name))
        if found and found["metadata"]["uid"] == uid:
            del self.objects["Job"][namespace, name]

    async def delete_finetunejob(self, job: JobView) -> None:
        """Delete a FineTuneJob."""
        self.calls.append(f"delete {job.name} itself")
        self.objects["FineTuneJob"].pop(job.key, None)

    async def write_status(self, job: JobView, patch: Body) -> str | None:
        """Merge a patch into the status, locked by the resourceVersion."""
        self._maybe_fail()
        body = self.objects["FineTuneJob"].get(job.key)
        if body is None:
            return None
        if body["metadata"]["resourceVersion"] != job.resource_version:
            raise ConflictError("changed")
        self.calls.append("status")
        body["status"] = _merged(body.get("status", {}), patch)
        return str(self.add("FineTuneJob", body)["metadata"]["resourceVersion"])

    async def emit_event(self, job: JobView, event: EventRequest) -> None:
        """Record an Event."""
        self.calls.append("event")
        self.events.append(event)

    def _maybe_fail(self) -> None:
        error, self.fail_next = self.fail_next, None
        if error:
            raise error


def _merged(old: Body, patch: Body) -> Body:
    new = {key: value for key, value in old.items() if patch.get(key, ...) is not None}
    for key, value in patch.items():
        if value is not None:
            new[key] = _merged(old.get(key, {}), value) if isinstance(value, dict) else value
    return new
