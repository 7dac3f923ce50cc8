"""What the operator knows of the cluster: slim views, fed by watches and corrected by full LISTs.

A view with an older resourceVersion never replaces a newer one: our own status write is in the cache before the
watch brings it. resourceVersions of one resource compare as integers (KEP-5504).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from finetune_operator.api.report import ProgressReport
from finetune_operator.api.views import ChildJob, GpuNode, JobView, Key, PodView, ProfileView, View, WorkloadView

V = TypeVar("V")


class Shelf(Generic[V]):
    """Views of one kind by uid, each with the resourceVersion that it was seen at."""

    def __init__(self) -> None:
        self._views: dict[str, tuple[int, V]] = {}

    def put(self, uid: str, version: str, view: V) -> bool:
        """Keep a view unless a newer one is there; tell whether it says anything new.

        Most changes of a Job or pod are none of its view, and a decision sees nothing else.
        """
        number, known = int(version or 0), self._views.get(uid)
        if known and known[0] > number:
            return False
        self._views[uid] = (number, view)
        return known is None or known[1] != view

    def knows(self, uid: str, version: str) -> bool:
        """Whether a view of this version, or of a newer one, is kept: our own write, as a rule."""
        known = self._views.get(uid)
        return known is not None and known[0] >= int(version or 0)

    def drop(self, uid: str) -> V | None:
        """Forget a view and return it."""
        _, view = self._views.pop(uid, (0, None))
        return view

    def get(self, uid: str) -> V | None:
        """Return a view."""
        found = self._views.get(uid)
        return found[1] if found else None

    def uids(self) -> set[str]:
        """Return the uids of all views."""
        return set(self._views)

    def __iter__(self) -> Iterator[V]:
        return iter([view for _, view in self._views.values()])


class Cache:
    """All shelves, with the indexes that a snapshot needs."""

    def __init__(self) -> None:
        self.jobs: Shelf[JobView] = Shelf()
        self.profiles: Shelf[ProfileView] = Shelf()
        self.children: Shelf[ChildJob] = Shelf()
        self.pods: Shelf[PodView] = Shelf()
        self.workloads: Shelf[WorkloadView] = Shelf()
        self.gpu_nodes: tuple[GpuNode, ...] = ()
        self.kueue = False
        """Whether the cluster serves Kueue, as far as is known."""
        self._uid_of: dict[Key, str] = {}
        self._children_of: dict[str, set[str]] = defaultdict(set)
        self._gone: dict[str, ChildJob] = {}
        self._pods_of: dict[str, set[str]] = defaultdict(set)
        self._workloads_of: dict[str, set[str]] = defaultdict(set)

    def put_job(self, view: JobView) -> bool:
        """Keep a FineTuneJob."""
        self._uid_of[view.key] = view.uid
        return self.jobs.put(view.uid, view.resource_version, view)

    def drop_job(self, uid: str) -> None:
        """Forget a FineTuneJob. Its children go by garbage collection and are dropped by their own events."""
        view = self.jobs.drop(uid)
        self._gone.pop(uid, None)
        if view and self._uid_of.get(view.key) == uid:
            del self._uid_of[view.key]

    def put_child(self, view: ChildJob, version: str) -> bool:
        """Keep a batch Job."""
        self._children_of[view.owner_uid].add(view.uid)
        return self.children.put(view.uid, version, view)

    def drop_child(self, uid: str) -> ChildJob | None:
        """Forget a batch Job, but that there was one: the status need not say so yet."""
        view = self.children.drop(uid)
        if view:
            _discard(self._children_of, view.owner_uid, uid)
            if self.jobs.get(view.owner_uid):
                self._gone[view.owner_uid] = max(self._gone.get(view.owner_uid, view), view, key=_place)
        return view

    def put_pod(self, view: PodView, version: str) -> bool:
        """Keep a pod."""
        self._pods_of[view.owner_uid].add(view.uid)
        return self.pods.put(view.uid, version, view)

    def drop_pod(self, uid: str) -> PodView | None:
        """Forget a pod."""
        view = self.pods.drop(uid)
        if view:
            _discard(self._pods_of, view.owner_uid, uid)
        return view

    def put_workload(self, view: WorkloadView, version: str) -> bool:
        """Keep a Workload of Kueue."""
        self._workloads_of[view.child_uid].add(view.uid)
        return self.workloads.put(view.uid, version, view)

    def drop_workload(self, uid: str) -> WorkloadView | None:
        """Forget a Workload."""
        view = self.workloads.drop(uid)
        if view:
            _discard(self._workloads_of, view.child_uid, uid)
        return view

    def owner_of(self, workload: WorkloadView) -> str | None:
        """Return the uid of the FineTuneJob whose batch Job a Workload is for."""
        child = self.children.get(workload.child_uid)
        return child.owner_uid if child else None

    def job(self, key: Key) -> JobView | None:
        """Return a FineTuneJob by namespace and name."""
        uid = self._uid_of.get(key)
        return self.jobs.get(uid) if uid else None

    def key_of(self, uid: str) -> Key | None:
        """Return namespace and name of a FineTuneJob by uid."""
        view = self.jobs.get(uid)
        return view.key if view else None

    def pods_of(self, job: JobView) -> tuple[PodView, ...]:
        """Return the pods of a FineTuneJob. Labels and owners that say so in another namespace say nothing."""
        found = _all(self.pods, self._pods_of.get(job.uid, ()))
        return tuple(pod for pod in found if pod.namespace == job.namespace)

    def snapshot(self, key: Key, report: ProgressReport | None) -> View | None:
        """Return everything that is known about a FineTuneJob, or None if there is none."""
        job = self.job(key)
        if job is None:
            return None
        children = _all(self.children, self._children_of.get(job.uid, ()))
        own = tuple(child for child in children if child.namespace == job.namespace)
        workloads = [uid for child in own for uid in self._workloads_of.get(child.uid, ())]
        return View(
            job=job,
            profiles=tuple(self.profiles),
            children=own,
            gone=self._gone.get(job.uid),
            pods=self.pods_of(job),
            workloads=_all(self.workloads, workloads),
            kueue=self.kueue,
            gpu_nodes=self.gpu_nodes,
            report=report,
        )


def _all(shelf: Shelf[V], uids: Iterable[str]) -> tuple[V, ...]:
    return tuple(view for uid in uids if (view := shelf.get(uid)) is not None)


def _place(child: ChildJob) -> tuple[int, int, bool]:
    return child.run, child.attempt, child.stage == "train"


def _discard(index: dict[str, set[str]], owner: str, uid: str) -> None:
    index[owner].discard(uid)
    if not index[owner]:
        del index[owner]
