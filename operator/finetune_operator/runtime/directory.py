"""What the status server asks: which pods may post for a job, and where its posts go."""

from __future__ import annotations

from collections.abc import Callable

from finetune_operator.api.report import ProgressReport
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.queue import WorkQueue


class Directory:
    """The cache and the queue, as the status server sees them."""

    def __init__(self, *, cache: Cache, queue: WorkQueue, keep: Callable[[str, ProgressReport], object]) -> None:
        self._cache, self._queue, self._keep = cache, queue, keep

    def live_pods(self, namespace: str, name: str) -> tuple[str, int | None, frozenset[str]] | None:
        """Return uid, attempt and the uids of the live pods of the current attempt; None if there is no such job."""
        job = self._cache.job((namespace, name))
        if job is None:
            return None
        current = job.status.job.name if job.status.job else None
        pods = self._cache.pods_of(job)
        live = frozenset(pod.uid for pod in pods if pod.child == current and not pod.is_terminal)
        return job.uid, job.status.attempt, live

    def accept(self, uid: str, report: ProgressReport) -> None:
        """Keep the newest report and have its job looked at."""
        self._keep(uid, report)
        key = self._cache.key_of(uid)
        if key:
            self._queue.add(key)
