"""The tasks that run as long as the operator: workers over the queue while it leads, and the periodic LIST.

A task that ends takes the process down: an operator that lives on half is worse than one that is restarted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from finetune_operator.runtime.feed import Feed
from finetune_operator.runtime.gateway import ApiError, ConflictError, Gateway, NotLeadingError, TransientError
from finetune_operator.runtime.observer import Nobody, Observer
from finetune_operator.runtime.queue import WorkQueue
from finetune_operator.runtime.reconciler import Reconciler

log = logging.getLogger(__name__)
_FIRST_LIST_RETRY = 2.0
_KUEUE_AGAIN = 5.0
_LIST_RETRY = 30.0
_NOT_LEADING_RETRY = 1.0
_STUCK_SECONDS = 600.0
"""One reconcile is a few requests of at most 30 s each."""
Lead = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]


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
        lead: Lead,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lead` runs what it is given whenever, and as long as, this replica leads."""
        self._queue, self._reconciler, self._feed, self._gateway = queue, reconciler, feed, gateway
        self._workers, self._resync_seconds = workers, resync_seconds
        self._lead, self._observer, self._clock = lead, observer or Nobody(), clock
        self._last_resync = self._clock()
        self._began: dict[tuple[str, str], float] = {}
        self.synced = False
        """Whether everything has been listed once."""

    async def run(self) -> None:
        """Work until cancelled. Raises what a task raised."""
        await self._first_list()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._resync())
            tasks.create_task(self._follow_kueue())
            await self._lead(self._work)

    def is_healthy(self) -> bool:
        """Whether work moves on: false has the kubelet restart the operator.

        An API server that does not answer is no reason: a restart would only lose what is known.
        """
        now = self._clock()
        stuck = any(now - began > _STUCK_SECONDS for began in self._began.values())
        return not stuck and now - self._last_resync < 3 * self._resync_seconds + _STUCK_SECONDS

    async def _work(self) -> None:
        """Look at everything, then at what changes. What another leader has begun is gone on with."""
        self._feed.enqueue_all()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._workers):
                tasks.create_task(self._take_keys())

    async def _first_list(self) -> None:
        """Nothing is decided before everything is known once: a Job not yet listed would look missing."""
        while True:
            self._last_resync = self._clock()
            try:
                await self._feed.relist(self._gateway)
            except ApiError as error:
                log.warning("the first LIST failed, trying again: %s", error)
                await asyncio.sleep(_FIRST_LIST_RETRY)
            else:
                self.synced = True
                return

    async def _resync(self) -> None:
        wait = self._resync_seconds
        while True:
            await asyncio.sleep(wait)
            wait = self._resync_seconds
            try:
                await self._feed.relist(self._gateway)
            except ApiError as error:
                wait = min(wait, _LIST_RETRY)
                log.warning("LIST failed, the next is in %.0f s: %s", wait, error)
            self._last_resync = self._clock()

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

    async def _take_keys(self) -> None:
        while (key := await self._queue.get()) is not None:
            self._began[key] = self._clock()
            try:
                await self._reconcile(key)
            finally:
                del self._began[key]
                self._queue.done(key)

    async def _reconcile(self, key: tuple[str, str]) -> None:
        began = self._clock()
        try:
            with self._observer.reconciling(key):
                after = await self._reconciler.reconcile(key)
        except NotLeadingError:
            # After a renewal that was merely late this replica goes on leading, and nothing else brings the key back.
            log.info("%s/%s: left to the replica that leads", *key)
            self._queue.add_after(key, _NOT_LEADING_RETRY)
        except ConflictError as error:
            self._observer.failed(error)
            # The watch brings what was written; look again soon even if it does not.
            log.debug("%s/%s changed meanwhile: %s", *key, error)
            self._queue.add_after(key, 0.2)
        except ApiError as error:
            self._observer.failed(error)
            if isinstance(error, TransientError):
                self._queue.hold(error.retry_after)
            log.warning("%s/%s: %s; again in %.1f s", *key, error, self._queue.retry(key))
        except Exception as error:
            self._observer.failed(error)
            log.exception("%s/%s: a bug; again in %.1f s", *key, self._queue.retry(key))
        else:
            self._observer.reconciled(self._clock() - began)
            self._queue.succeeded(key)
            if after is not None:
                self._queue.add_after(key, after)
