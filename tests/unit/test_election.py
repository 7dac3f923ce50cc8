"""Who leads: the decision as a table, then replicas over a Lease that is slow, gone or written by another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from finetune_operator.policy.election import (
    LEASE_SECONDS,
    RENEW_DEADLINE,
    Lease,
    Sighting,
    held_by,
    next_move,
    sighted,
)
from finetune_operator.runtime.gateway import ConflictError, TransientError
from finetune_operator.runtime.leader import Leader

MINE, OTHERS = Lease(holder="me", version="1"), Lease(holder="other", version="1")


@pytest.mark.parametrize(
    ("lease", "age", "move"),
    [
        pytest.param(Lease(), 0, "take", id="there is none yet"),
        pytest.param(Lease(version="1"), 0, "take", id="given back"),
        pytest.param(MINE, 0, "renew", id="mine"),
        pytest.param(MINE, 99, "renew", id="mine, from before this container was restarted"),
        pytest.param(OTHERS, 0, "wait", id="another's"),
        pytest.param(OTHERS, LEASE_SECONDS - 0.1, "wait", id="another's, nearly run out"),
        pytest.param(OTHERS, LEASE_SECONDS, "take", id="another's, run out"),
        pytest.param(replace(OTHERS, seconds=60), 59, "wait", id="another's, by the time that it asks for"),
    ],
)
def test_the_next_move(lease: Lease, age: float, move: str) -> None:
    assert next_move(Sighting(lease, 100.0), "me", 100.0 + age) == move


def test_a_renewal_starts_the_time_anew_and_a_second_look_does_not() -> None:
    first = sighted(None, OTHERS, 100.0)
    assert sighted(first, OTHERS, 105.0).since == 100.0
    assert sighted(first, replace(OTHERS, version="2"), 105.0).since == 105.0


def test_a_change_of_hands_is_counted_and_a_renewal_is_not() -> None:
    taken = held_by("me", replace(OTHERS, transitions=3))
    assert (taken.holder, taken.transitions, taken.version) == ("me", 4, "1")
    assert held_by("me", taken).transitions == 4


def test_a_leader_stops_before_its_lease_can_be_taken() -> None:
    assert RENEW_DEADLINE < LEASE_SECONDS


class Shared:
    """One Lease that several replicas see, each by a client of its own that can fail."""

    def __init__(self) -> None:
        self.lease = Lease()
        self._version = 0

    def put(self, lease: Lease) -> Lease:
        """Write it as the API server does, by resourceVersion."""
        if lease.version != self.lease.version:
            raise ConflictError("changed")
        self._version += 1
        self.lease = replace(lease, version=str(self._version))
        return self.lease


class Client:
    """Implements `runtime.leader.LeaseStore`."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.down, self.slow, self.loses_answers = False, 0.0, False

    async def read(self) -> Lease:
        """Look."""
        await self._way()
        return self._shared.lease

    async def write(self, lease: Lease) -> Lease:
        """Write."""
        await self._way()
        written = self._shared.put(lease)
        if self.loses_answers:
            raise TransientError("the connection broke")
        return written

    async def _way(self) -> None:
        await asyncio.sleep(self.slow)
        if self.down:
            raise TransientError("no connection")


class Replica:
    """A replica whose work is to note, ten times a second, that it may write."""

    def __init__(self, name: str, shared: Shared) -> None:
        self.client = Client(shared)
        self.wrote: list[float] = []
        self._told = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.leader = Leader(self.client, me=name, clock=self._loop.time, told=self._told.set)
        self.task = asyncio.create_task(self.leader.run(self._work))

    async def _work(self) -> None:
        while not self._told.is_set():
            if self.leader.leads():
                self.wrote.append(self._loop.time())
            await asyncio.sleep(0.1)


@asynccontextmanager
async def two_replicas() -> AsyncIterator[tuple[Replica, Replica]]:
    """Two of them; the first leads."""
    shared = Shared()
    first = Replica("first", shared)
    await asyncio.sleep(0.5)
    second = Replica("second", shared)
    await asyncio.sleep(5)
    assert (first.leader.leads(), second.wrote) == (True, [])
    yield first, second
    for replica in (first, second):
        replica.task.cancel()
    await asyncio.gather(first.task, second.task, return_exceptions=True)


def never_at_once(first: Replica, second: Replica) -> bool:
    """Whether what the two wrote lies apart in time, and each wrote something."""
    return bool(first.wrote and second.wrote) and (first.wrote[-1] < second.wrote[0])


@pytest.mark.looptime
async def test_a_leader_that_is_gone_is_followed_within_fifteen_seconds() -> None:
    async with two_replicas() as (first, second):
        first.client.down = True  # as when it was killed: nothing of it reaches the API server any more
        first.task.cancel()
        await asyncio.sleep(12)
        assert never_at_once(first, second)
        assert second.wrote[0] - first.wrote[-1] < 12


@pytest.mark.looptime
async def test_a_leader_that_ends_is_followed_at_once() -> None:
    async with two_replicas() as (first, second):
        await first.leader.end()
        await asyncio.sleep(1.5)
        assert never_at_once(first, second)
        assert second.wrote[0] - first.wrote[-1] < 1.5


@pytest.mark.looptime
@pytest.mark.parametrize("fault", [{"down": True}, {"slow": 100.0}], ids=["no-connection", "no-answer"])
async def test_a_leader_that_cannot_renew_stops_before_another_begins_and_comes_back_as_a_follower(fault) -> None:
    async with two_replicas() as (first, second):
        for name, value in fault.items():
            setattr(first.client, name, value)
        await asyncio.sleep(RENEW_DEADLINE + 0.1)
        assert not first.leader.leads()
        await asyncio.sleep(10)
        assert never_at_once(first, second)
        first.client.down, first.client.slow = False, 0.0
        await asyncio.sleep(30)
        assert second.leader.leads()
        assert not first.leader.leads()


@pytest.mark.looptime
async def test_an_api_server_that_is_away_for_all_leaves_nobody_leading_and_then_one() -> None:
    async with two_replicas() as (first, second):
        first.client.down = second.client.down = True
        await asyncio.sleep(120)
        assert not first.leader.leads()
        assert not second.leader.leads()
        first.client.down = second.client.down = False
        await asyncio.sleep(12)
        assert first.leader.leads() != second.leader.leads()


@pytest.mark.looptime
async def test_a_renewal_whose_answer_is_lost_costs_nothing() -> None:
    async with two_replicas() as (first, second):
        first.client.loses_answers = True
        await asyncio.sleep(2.5)
        first.client.loses_answers = False
        await asyncio.sleep(20)
        assert first.leader.leads()
        assert second.wrote == []


@pytest.mark.looptime
async def test_a_slow_api_server_costs_nothing() -> None:
    async with two_replicas() as (first, second):
        first.client.slow = second.client.slow = 2.0
        await asyncio.sleep(60)
        assert first.leader.leads()
        assert second.wrote == []


@pytest.mark.looptime
async def test_work_that_crashes_takes_the_replica_down_and_gives_the_lease_back() -> None:
    shared = Shared()

    async def crash() -> None:
        raise RuntimeError("a bug")

    loop = asyncio.get_running_loop()
    leader = Leader(Client(shared), me="only", clock=loop.time, told=lambda: None)
    with pytest.raises(RuntimeError, match="a bug"):
        await leader.run(crash)
    assert shared.lease.holder == ""


@pytest.mark.looptime
async def test_what_is_under_way_ends_before_the_lease_is_given_back() -> None:
    shared, told, ended = Shared(), asyncio.Event(), []

    async def work() -> None:
        await told.wait()
        await asyncio.sleep(4)  # a reconcile that was under way
        ended.append(shared.lease.holder)

    loop = asyncio.get_running_loop()
    leader = Leader(Client(shared), me="only", clock=loop.time, told=told.set)
    running = asyncio.create_task(leader.run(work))
    await asyncio.sleep(1)
    await leader.end()
    await running
    assert (ended, shared.lease.holder, leader.leads()) == (["only"], "", False)
