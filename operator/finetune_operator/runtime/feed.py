"""From what is watched to what has to be looked at: bodies go into the cache as views, their jobs into the queue."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from finetune_operator.api.parse import (
    parse_child,
    parse_gpu_node,
    parse_job,
    parse_pod,
    parse_profile,
    parse_workload,
)
from finetune_operator.api.views import ChildJob, GpuNode
from finetune_operator.policy.decide import is_terminal
from finetune_operator.runtime.cache import Cache, Shelf
from finetune_operator.runtime.gateway import Gateway, Kind, RejectedError
from finetune_operator.runtime.queue import WorkQueue

log = logging.getLogger(__name__)
KINDS: tuple[Kind, ...] = ("FineTuneProfile", "FineTuneJob", "Job", "Pod")


class Feed:
    """Puts what is seen into the cache and the keys that it concerns into the queue."""

    def __init__(self, cache: Cache, queue: WorkQueue, *, forget: Callable[[str], None]) -> None:
        self._cache, self._queue, self._forget = cache, queue, forget

    def seen(self, kind: Kind, body: dict[str, Any]) -> None:
        """Take over an object that exists. What cannot be parsed is said in the log and left out."""
        try:
            self._seen(kind, body)
        except (ValidationError, KeyError, ValueError) as error:
            meta = body.get("metadata", {})
            log.error("cannot read %s %s/%s: %s", kind, meta.get("namespace", ""), meta.get("name"), error)

    def gone(self, kind: Kind, uid: str) -> None:
        """Forget an object that was deleted."""
        if kind == "FineTuneJob":
            self._cache.drop_job(uid)
            self._forget(uid)
        elif kind == "FineTuneProfile":
            if self._cache.profiles.drop(uid):
                self._all_waiting()
        elif kind == "Workload":
            workload = self._cache.drop_workload(uid)
            self._enqueue_owner(self._cache.owner_of(workload) if workload else None)
        else:
            view = self._cache.drop_child(uid) if kind == "Job" else self._cache.drop_pod(uid)
            self._enqueue_owner(view.owner_uid if view else None)

    def hears_of_kueue(self, served: bool) -> None:
        """Take over whether there is a Kueue; jobs in a queue are looked at when one comes or goes."""
        if served == self._cache.kueue:
            return
        self._cache.kueue = served
        for job in self._cache.jobs:
            if job.status.queue is not None and not is_terminal(job.status):
                self._queue.add(job.key)

    def enqueue_all(self) -> None:
        """Have every job looked at, those that have ended as well: their time to go may have come."""
        for job in self._cache.jobs:
            self._queue.add(job.key)

    async def relist(self, gateway: Gateway) -> None:
        """LIST everything: fill the cache, drop what is gone, look at every job.

        kopf says nothing about objects that were deleted while its watch was down (kopf.md, trap 4).
        """
        self.hears_of_kueue(await gateway.serves_kueue())
        self._cache.gpu_nodes = await _gpu_nodes(gateway)
        for kind in KINDS:
            await self._relist(gateway, kind)
        try:
            await self._relist(gateway, "Workload")
        except RejectedError as error:  # jobs in no queue go on
            log.warning("Kueue's Workloads are not read, why jobs wait in its queues is not known: %s", error)
        for job in self._cache.jobs:
            if not is_terminal(job.status):
                self._queue.add(job.key)

    async def _relist(self, gateway: Gateway, kind: Kind) -> None:
        shelf_before = self._shelf(kind).uids()
        listed: set[str] = set()
        async for body in gateway.list(kind):
            listed.add(body["metadata"]["uid"])
            self.seen(kind, body)
        for uid in shelf_before - listed:
            self.gone(kind, uid)

    def _seen(self, kind: Kind, body: dict[str, Any]) -> None:
        uid, version = body["metadata"]["uid"], body["metadata"]["resourceVersion"]
        if self._shelf(kind).knows(uid, version):
            return
        if kind == "FineTuneJob":
            job = parse_job(body)
            if self._cache.put_job(job):
                self._queue.add(job.key)
        elif kind == "FineTuneProfile":
            if self._cache.profiles.put(uid, version, parse_profile(body)):
                self._all_waiting()
        else:
            self._enqueue_owner(self._seen_below(kind, body, version))

    def _seen_below(self, kind: Kind, body: dict[str, Any], version: str) -> str | None:
        """Keep what belongs to a FineTuneJob; return that one's uid if it was news."""
        if kind == "Job":
            return self._child(parse_child(body), uid=body["metadata"]["uid"], version=version)
        if kind == "Pod":
            pod = parse_pod(body)
            if pod is None:
                self.gone("Pod", body["metadata"]["uid"])
            return pod.owner_uid if pod and self._cache.put_pod(pod, version) else None
        workload = parse_workload(body)
        kept = workload and self._cache.put_workload(workload, version)
        return self._cache.owner_of(workload) if workload and kept else None

    def _child(self, child: ChildJob | None, *, uid: str, version: str) -> str | None:
        """One that has got another owner, or none, is gone for the one that it had."""
        known = self._cache.children.get(uid)
        if known and (child is None or child.owner_uid != known.owner_uid):
            self.gone("Job", uid)
        return child.owner_uid if child and self._cache.put_child(child, version) else None

    def _enqueue_owner(self, uid: str | None) -> None:
        key = self._cache.key_of(uid) if uid else None
        if key:
            self._queue.add(key)

    def _all_waiting(self) -> None:
        """A profile changed: jobs that have not begun may be allowed or refused now."""
        for job in self._cache.jobs:
            if job.status.run is None:
                self._queue.add(job.key)

    def _shelf(self, kind: Kind) -> Shelf[Any]:
        shelves: dict[Kind, Shelf[Any]] = {
            "FineTuneJob": self._cache.jobs,
            "FineTuneProfile": self._cache.profiles,
            "Job": self._cache.children,
            "Pod": self._cache.pods,
            "Workload": self._cache.workloads,
        }
        return shelves[kind]


async def _gpu_nodes(gateway: Gateway) -> tuple[GpuNode, ...]:
    """Return the nodes with labelled GPUs: listed, never watched, since a node writes its status every few seconds."""
    try:
        return tuple([parse_gpu_node(body) async for body in gateway.list("Node")])
    except RejectedError as error:  # a right that may be left out: memory is then what job and profile say
        log.info("nodes are not read: %s", error)
        return ()
