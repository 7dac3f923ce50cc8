"""The tasks that run as long as the operator: workers over the queue, and the periodic LIST.

A task that ends takes the process down: an operator that lives on half is worse than one that is restarted.
"""

from __future__ import annotations

import asyncio
import logging
import time

from finetune_operator.runtime.feed import Feed
from finetune_operator.runtime.gateway import ApiError, ConflictError, Gateway
from finetune_operator.runtime.observer import Nobody, Observer
from finetune_operator.runtime.queue import WorkQueue
from finetune_operator.runtime.reconciler import Reconciler

log = logging.getLogger(__name__)
_FIRST_LIST_RETRY = 2.0
_KUEUE_AGAIN = 5.0


class Loop:
    """Workers and resync."""

    def __init__(
        self,
        *,
        queue: WorkQueue,
        reconciler: Reconciler,
        feed: Feed,
        gateway: Gateway,
        workers: int,
        resync_seconds: float,
        observer: Observer | None = None,
    ) -> None:
        self._queue, self._reconciler, self._feed, self._gateway = queue, reconciler, feed, gateway
        self._workers, self._resync_seconds = workers, resync_seconds
        self._observer = observer or Nobody()
        self._last_resync = time.monotonic()

    async def run(self) -> None:
        """Work until cancelled. Raises what a task raised."""
        await self._first_list()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._resync())
            tasks.create_task(self._follow_kueue())
            for _ in range(self._workers):
                tasks.create_task(self._work())

    def is_healthy(self) -> bool:
        """Whether the periodic LIST still comes: false has the kubelet restart the operator."""
        return time.monotonic() - self._last_resync < 3 * self._resync_seconds + 60

    async def _first_list(self) -> None:
        """Nothing is decided before everything is known once: a Job not yet listed would look missing."""
        while True:
            try:
                await self._feed.relist(self._gateway)
                self._last_resync = time.monotonic()
            except ApiError as error:
                log.warning("the first LIST failed, trying again: %s", error)
                await asyncio.sleep(_FIRST_LIST_RETRY)
            else:
                return

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self._resync_seconds)
            try:
                await self._feed.relist(self._gateway)
                self._last_resync = time.monotonic()
            except ApiError as error:
                log.warning("LIST failed, the next is in %.0f s: %s", self._resync_seconds, error)

    async def _follow_kueue(self) -> None:
        """Watch Kueue's Workloads while there is a Kueue. kopf would not: it looks for a kind when its CRD is written,
        and never again where the API server begins to serve it some seconds later.
        """
        while True:
            try:
                self._feed.hears_of_kueue(await self._gateway.serves_kueue())
                async for event, body in self._gateway.watch_workloads():
                    if event == "DELETED":
                        self._feed.gone("Workload", body["metadata"]["uid"])
                    else:
                        self._feed.seen("Workload", body)
            except ApiError as error:
                log.debug("Kueue's Workloads are watched again in %.0f s: %s", _KUEUE_AGAIN, error)
            await asyncio.sleep(_KUEUE_AGAIN)

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            try:
                await self._reconcile(key)
            finally:
                self._queue.done(key)

    async def _reconcile(self, key: tuple[str, str]) -> None:
        began = time.monotonic()
        try:
            with self._observer.reconciling(key):
                after = await self._reconciler.reconcile(key)
        except ConflictError as error:
            self._observer.failed(error)
            # The watch brings what was written; look again soon even if it does not.
            log.debug("%s/%s changed meanwhile: %s", *key, error)
            self._queue.add_after(key, 0.2)
        except ApiError as error:
            self._observer.failed(error)
            log.warning("%s/%s: %s; again in %.1f s", *key, error, self._queue.retry(key))
        except Exception as error:
            self._observer.failed(error)
            log.exception("%s/%s: a bug; again in %.1f s", *key, self._queue.retry(key))
        else:
            self._observer.reconciled(time.monotonic() - began)
            self._queue.succeeded(key)
            if after is not None:
                self._queue.add_after(key, after)
