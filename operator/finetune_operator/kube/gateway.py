"""The loop's Gateway over the real API."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime

from finetune_operator.api import constants as c
from finetune_operator.api.views import ChildJob, JobView, PodView
from finetune_operator.kube.client import METADATA_ALONE, Body, KubeClient
from finetune_operator.policy.plan import EventRequest
from finetune_operator.runtime.gateway import ConflictError, Kind, NotLeadingError, RejectedError

_PAGE = 250
_NAME_OF_POD = re.compile(r'^Error creating: (pods "[^"]*" is forbidden: )?')
"""The pod's name is another one with each try."""
_SELECTORS: dict[Kind, str] = {"Job": c.MANAGED_SELECTOR, "Pod": c.MANAGED_SELECTOR, "Node": c.LABEL_GPU_PRODUCT}


class KubeGateway:
    """Implements `runtime.gateway.Gateway`."""

    def __init__(
        self, api: KubeClient, watch_namespace: str | None, *, may_write: Callable[[], bool] = lambda: True
    ) -> None:
        """`may_write` is asked before each write; where it says no, NotLeadingError is raised."""
        self._api, self._namespace, self._may_write = api, watch_namespace, may_write

    async def list(self, kind: Kind) -> AsyncIterator[Body]:
        """Yield all objects of a kind, page by page."""
        query: dict[str, str | int] = {"limit": _PAGE}
        if selector := _SELECTORS.get(kind):
            query["labelSelector"] = selector
        path, accept = await self._collection(kind), METADATA_ALONE if kind == "Node" else "application/json"
        while path:
            page = await self._api.get(path, query, accept=accept) or {}
            for item in page.get("items") or []:  # null where a list of metadata is empty
                yield item
            query["continue"] = page.get("metadata", {}).get("continue", "")
            if not query["continue"]:
                return

    async def serves_kueue(self) -> bool:
        """Whether the API server knows Kueue's group, and workloads in it."""
        return await self._workloads() is not None

    async def watch_workloads(self) -> AsyncIterator[tuple[str, Body]]:
        """Watch Kueue's Workloads, if there are any."""
        path = await self._workloads()
        query: dict[str, str | int] = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": 1800}
        if path is None:
            return
        async for event in self._api.stream(path, query):
            if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                yield event["type"], event["object"]
            elif event["type"] == "ERROR":
                return

    async def _workloads(self) -> str | None:
        """Return the path of Kueue's Workloads in the version that the API server prefers; None without a Kueue."""
        group = await self._api.get(f"/apis/{c.KUEUE_GROUP}")
        return self._namespaced(group["preferredVersion"]["groupVersion"], c.WORKLOAD_PLURAL) if group else None

    async def get_job(self, namespace: str, name: str) -> Body | None:
        """Return a batch Job, or None."""
        return await self._api.get(f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}")

    async def pods_of(self, job: JobView) -> tuple[Body, ...]:
        """Return the pods of a FineTuneJob, as the API server has them now."""
        query: dict[str, str | int] = {"labelSelector": f"{c.LABEL_JOB_UID}={job.uid}"}
        page = await self._api.get(f"/api/v1/namespaces/{job.namespace}/pods", query) or {}
        return tuple(page.get("items", []))

    async def create_job(self, manifest: Body) -> Body:
        """Create a batch Job."""
        path = f"/apis/batch/v1/namespaces/{manifest['metadata']['namespace']}/jobs"
        return {**manifest, "metadata": await self._writer.create(path, manifest)}

    async def create_service(self, manifest: Body) -> None:
        """Create a Service, or find it there: its name has the job's uid in it."""
        with suppress(ConflictError):
            await self._writer.create(f"/api/v1/namespaces/{manifest['metadata']['namespace']}/services", manifest)

    async def create_pod_group(self, manifest: Body) -> None:
        """Create coscheduling's PodGroup, or find it there: its name is an attempt's."""
        path = f"/apis/{manifest['apiVersion']}/namespaces/{manifest['metadata']['namespace']}/podgroups"
        with suppress(ConflictError):
            await self._writer.create(path, manifest)

    async def delete_job(self, namespace: str, name: str, *, uid: str) -> None:
        """Delete a batch Job; its pods follow. Another one of its name stays."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        with suppress(ConflictError):
            await self._writer.delete(f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}", options)

    async def delete_finetunejob(self, job: JobView) -> None:
        """Delete a FineTuneJob; its children follow."""
        path = f"/apis/{c.API_VERSION}/namespaces/{job.namespace}/{c.JOB_PLURAL}/{job.name}"
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": job.uid}}
        await self._writer.delete(path, options)

    async def refusal_of_pods(self, child: ChildJob) -> str:
        """Return what the API server last said to the Job controller, which tells it in an Event alone."""
        return _NAME_OF_POD.sub("", await self._last_said(child.namespace, child.uid, ("FailedCreate",)))

    async def mount_failure_of(self, pod: PodView) -> str:
        """Return what the kubelet last said about a pod's volumes, which it tells in an Event alone."""
        return await self._last_said(pod.namespace, pod.uid, ("FailedMount", "FailedAttachVolume"))

    async def _last_said(self, namespace: str, uid: str, reasons: tuple[str, ...]) -> str:
        about: dict[str, str | int] = {"fieldSelector": f"involvedObject.uid={uid}"}
        try:
            found = await self._api.get(f"/api/v1/namespaces/{namespace}/events", about) or {}
        except RejectedError:  # a right that an installation may lack
            return ""
        events = [event for event in found.get("items") or [] if event.get("reason") in reasons]
        events.sort(key=lambda event: event.get("lastTimestamp") or "")
        return str(events[-1].get("message", "")) if events else ""

    async def write_status(self, job: JobView, patch: Body) -> str | None:
        """Merge a patch into the status, locked by the view's resourceVersion."""
        path = f"/apis/{c.API_VERSION}/namespaces/{job.namespace}/{c.JOB_PLURAL}/{job.name}/status"
        lock = {"resourceVersion": job.resource_version, "uid": job.uid}
        written = await self._writer.merge(path, {"metadata": lock, "status": patch})
        return str(written["resourceVersion"]) if written else None

    async def emit_event(self, job: JobView, event: EventRequest) -> None:
        """Record an Event about the job."""
        now = datetime.now(UTC)
        digest = hashlib.sha256(f"{now.isoformat()}{event.reason}{event.message}".encode()).hexdigest()[:16]
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{job.name}.{digest}", "namespace": job.namespace},
            "involvedObject": {
                "apiVersion": c.API_VERSION,
                "kind": c.JOB_KIND,
                "namespace": job.namespace,
                "name": job.name,
                "uid": job.uid,
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:1024],
            "source": {"component": c.MANAGER},
            "reportingComponent": c.MANAGER,
            "firstTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lastTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "count": 1,
        }
        await self._writer.create(f"/api/v1/namespaces/{job.namespace}/events", body)

    @property
    def _writer(self) -> KubeClient:
        if not self._may_write():
            raise NotLeadingError("this replica does not lead")
        return self._api

    async def _collection(self, kind: Kind) -> str | None:
        """Return the path of a kind; None where there is nothing to list."""
        if kind == "Workload":
            return await self._workloads()
        return {
            "FineTuneJob": self._namespaced(c.API_VERSION, c.JOB_PLURAL),
            "FineTuneProfile": f"/apis/{c.API_VERSION}/{c.PROFILE_PLURAL}",
            "Job": self._namespaced("batch/v1", "jobs"),
            "Pod": self._namespaced("v1", "pods"),
            "Node": None if self._namespace else "/api/v1/nodes",  # the Role of one namespace has no right on nodes
        }[kind]

    def _namespaced(self, version: str, plural: str) -> str:
        root = "/api" if version == "v1" else "/apis"
        where = f"/namespaces/{self._namespace}" if self._namespace else ""
        return f"{root}/{version}{where}/{plural}"
