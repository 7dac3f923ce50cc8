"""The work queue keeps client-go's promises. Time is looptime's: nothing here waits."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from finetune_operator.runtime.queue import MAX_BACKOFF, WorkQueue

A, B = ("team", "a"), ("team", "b")
pytestmark = pytest.mark.looptime


async def test_a_key_that_is_added_twice_is_worked_on_once() -> None:
    queue = WorkQueue()
    queue.add(A)
    queue.add(A)
    queue.add(B)
    assert [await queue.get(), await queue.get()] == [A, B]


async def test_namespaces_take_turns_so_that_nobody_waits_behind_all_that_another_one_has() -> None:
    queue = WorkQueue()
    crowd = [("crowd", str(number)) for number in range(1000)]
    for key in (*crowd, A, ("other", "x"), B):
        queue.add(key)
    assert queue.depth() == 1003
    taken = [await queue.get() for _ in range(1003)]
    assert [taken.index(key) for key in (A, ("other", "x"), B)] == [1, 2, 4]
    assert [key for key in taken if key in crowd] == crowd


async def test_a_namespace_that_has_had_its_turn_waits_for_the_others() -> None:
    queue = WorkQueue()
    for key in (A, ("other", "x"), ("other", "y")):
        queue.add(key)
    assert await queue.get() == A
    queue.add(B)
    assert [await queue.get() for _ in range(3)] == [("other", "x"), B, ("other", "y")]


async def test_a_key_that_is_added_while_it_is_worked_on_is_worked_on_again_afterwards() -> None:
    queue = WorkQueue()
    queue.add(A)
    assert await queue.get() == A
    queue.add(A)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 1)
    queue.done(A)
    assert await queue.get() == A


async def test_of_several_times_the_earliest_counts_and_only_once() -> None:
    queue, loop = WorkQueue(), asyncio.get_running_loop()
    queue.add_after(A, 60)
    queue.add_after(A, 10)
    queue.add_after(A, 30)
    start = loop.time()
    assert await queue.get() == A
    assert loop.time() - start == pytest.approx(10, abs=0.1)
    queue.done(A)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 120)


async def test_a_waiting_worker_takes_what_is_added_meanwhile() -> None:
    queue = WorkQueue()
    queue.add_after(B, 1000)
    worker = asyncio.create_task(queue.get())
    await asyncio.sleep(1)
    queue.add(A)
    assert await asyncio.wait_for(worker, 1) == A


async def test_backoff_doubles_up_to_its_bound_and_is_forgotten_with_success() -> None:
    queue = WorkQueue()
    delays = [queue.retry(A) for _ in range(12)]
    assert all(later > 1.3 * sooner for sooner, later in itertools.pairwise(delays[:8]))
    assert max(delays) <= MAX_BACKOFF * 1.2
    queue.succeeded(A)
    assert queue.retry(A) <= 1.2


async def test_a_queue_that_is_held_gives_out_nothing_until_its_time_whatever_is_added() -> None:
    queue, loop = WorkQueue(), asyncio.get_running_loop()
    start = loop.time()
    queue.add(A)
    queue.hold(6)
    worker = asyncio.create_task(queue.get())
    await asyncio.sleep(1)
    queue.add(B)
    assert await worker == A
    assert loop.time() - start == pytest.approx(6, abs=0.1)


async def test_a_queue_that_is_closed_lets_every_worker_go() -> None:
    queue = WorkQueue()
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(1)
    queue.close()
    queue.add(A)
    assert await asyncio.gather(*workers, queue.get()) == [None] * 4
