"""The loop over a fake API: what keeps it going, what the liveness probe is told, how it ends. Time is looptime's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.feed import Feed
from finetune_operator.runtime.gateway import TransientError
from finetune_operator.runtime.loop import Loop
from finetune_operator.runtime.queue import WorkQueue
from tests.support.fake_gateway import FakeGateway
from tests.unit.test_reconciler import make_body

pytestmark = pytest.mark.looptime


class Reconciling:
    """A reconciler that only takes its time, or fails as it is told."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.seen = seconds, 0
        self.error: Exception | None = None

    async def reconcile(self, _key: tuple[str, str]) -> None:
        """Look at a job."""
        self.seen += 1
        await asyncio.sleep(self.seconds)
        if self.error:
            raise self.error


class Away(FakeGateway):
    """An API server that can be away."""

    is_away = False

    async def list(self, kind: Any) -> AsyncIterator[dict[str, Any]]:
        """List, or not."""
        if self.is_away:
            raise TransientError("away")
        async for body in super().list(kind):
            yield body


class Running:
    """The loop as the leader runs it, until `close`."""

    def __init__(self, reconciler: Reconciling) -> None:
        self.gateway, self.queue = Away(), WorkQueue()
        self.gateway.add("FineTuneJob", make_body())
        feed = Feed(Cache(), self.queue, forget=lambda _uid: None)
        self.loop = Loop(
            queue=self.queue, reconciler=reconciler, feed=feed, gateway=self.gateway, workers=2,
            resync_seconds=600, lead=lambda work: work(), clock=asyncio.get_running_loop().time,
        )  # fmt: skip
        self.task = asyncio.create_task(self.loop.run())

    async def close(self) -> None:
        """End it."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_an_api_server_that_is_away_for_a_day_is_no_reason_to_restart() -> None:
    running = Running(Reconciling())
    await asyncio.sleep(10)
    running.gateway.is_away = True
    await asyncio.sleep(86400)
    assert running.loop.is_healthy()
    await running.close()


async def test_nothing_is_looked_at_before_everything_was_listed_once() -> None:
    reconciler = Reconciling()
    running = Running(reconciler)
    running.gateway.is_away = True
    await asyncio.sleep(60)
    assert (running.loop.synced, reconciler.seen) == (False, 0)
    running.gateway.is_away = False
    await asyncio.sleep(60)
    assert (running.loop.synced, reconciler.seen) == (True, 1)
    await running.close()


async def test_a_reconcile_that_never_ends_is_a_reason_to_restart() -> None:
    running = Running(Reconciling(seconds=1e9))
    await asyncio.sleep(500)
    assert running.loop.is_healthy()
    await asyncio.sleep(500)
    assert not running.loop.is_healthy()
    await running.close()


async def test_a_bug_in_one_job_is_tried_again_and_ends_nothing() -> None:
    reconciler = Reconciling()
    reconciler.error = KeyError("a bug")
    running = Running(reconciler)
    await asyncio.sleep(60)
    assert (reconciler.seen > 3, running.task.done(), running.loop.is_healthy()) == (True, False, True)
    await running.close()


async def test_what_is_under_way_ends_and_nothing_new_begins_once_the_queue_is_closed() -> None:
    reconciler = Reconciling(seconds=5)
    running = Running(reconciler)
    await asyncio.sleep(1)
    running.queue.close()
    running.queue.add(("team", "another"))
    await asyncio.sleep(60)
    assert reconciler.seen == 1
    await running.close()


async def test_a_server_that_asks_to_be_left_alone_is_whatever_happens_meanwhile() -> None:
    reconciler = Reconciling()
    reconciler.error = TransientError("429", retry_after=30)
    running = Running(reconciler)
    await asyncio.sleep(1)
    for _ in range(20):
        running.queue.add(("team", "bot"))
        await asyncio.sleep(1)
    assert reconciler.seen == 1
    await running.close()
