"""Leader election: one replica works, the others watch and wait.

Whoever holds the Lease runs `work`. A leader that cannot renew stops in time, and its gateway refuses writes even
before that is noticed; one that is told to end lets what is under way end, then gives the Lease back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from finetune_operator.policy.election import (
    POLL_EVERY,
    RENEW_DEADLINE,
    RENEW_EVERY,
    Lease,
    Sighting,
    held_by,
    next_move,
    sighted,
)
from finetune_operator.runtime.gateway import ApiError, ConflictError

log = logging.getLogger(__name__)
_DRAIN_SECONDS = 10.0
_RELEASE_SECONDS = 3.0


class LeaseStore(Protocol):
    """The operator's one Lease. Every method raises ApiError."""

    async def read(self) -> Lease:
        """Return it; one of nobody where there is none yet."""

    async def write(self, lease: Lease) -> Lease:
        """Replace it, or create it where its version is empty. Raises ConflictError if it has changed since."""


class Leader:
    """This replica's part in the election."""

    def __init__(
        self, store: LeaseStore, *, me: str, clock: Callable[[], float] = time.monotonic, told: Callable[[], None]
    ) -> None:
        """`told` is called when this replica is to finish what is under way and take up nothing new."""
        self._store, self._me, self._clock, self._told = store, me, clock, told
        self._seen: Sighting | None = None
        self._until = float("-inf")
        self._moved = clock()
        self._ending = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def leads(self) -> bool:
        """Whether this replica may write: exactly until it could no longer be sure to be the only one."""
        return self._clock() < self._until

    def idle_seconds(self) -> float:
        """Return how long the election has stood still: it moves every few seconds, whatever the API server does."""
        return self._clock() - self._moved

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Campaign, and run `work` while leading, until told to end. Raises what `work` raises."""
        self._idle.clear()
        try:
            while not self._ending.is_set():
                if await self._campaign():
                    await self._lead(work)
                else:
                    await self._pause(POLL_EVERY)
        finally:
            await self._give_back()
            self._idle.set()

    async def end(self) -> None:
        """Finish what is under way, give the Lease back, and let `run` return."""
        self._ending.set()
        self._told()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._idle.wait()

    async def _campaign(self) -> bool:
        """Look at the Lease, and take or renew it where that is due; return whether this replica leads."""
        began = self._moved = self._clock()
        limit = self._until - began if self.leads() else RENEW_DEADLINE
        try:
            async with asyncio.timeout(limit):
                seen = await self._look()
                if next_move(seen, self._me, self._clock()) == "wait":
                    self._until = float("-inf")
                    return False
                began = self._clock()
                written = await self._store.write(held_by(self._me, seen.lease))
        except ConflictError as error:  # somebody was quicker, or our own write came late: the next look says which
            log.info("the Lease has changed meanwhile: %s", error)
            self._seen = None
            return self.leads()
        except (ApiError, TimeoutError) as error:
            log.warning("the Lease cannot be %s: %s", "renewed" if self.leads() else "read", error or "no answer")
            return self.leads()
        self._seen = Sighting(written, self._clock())
        self._until = began + RENEW_DEADLINE
        return True

    async def _look(self) -> Sighting:
        """Return what is known of the Lease; a leader knows it from its own last write."""
        if self._seen is None or not self.leads():
            self._seen = sighted(self._seen, await self._store.read(), self._clock())
        return self._seen

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> None:
        log.info("%s leads", self._me)
        task = asyncio.ensure_future(work())
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=min(RENEW_EVERY, max(0.0, self._until - self._clock())))
                if not task.done() and not await self._campaign() and not self.leads():
                    log.warning("%s leads no more", self._me)
                    break
            if task.done():
                await task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()

    async def _give_back(self) -> None:
        """So that the next leader need not wait for the Lease to run out. Nothing is written after this."""
        led, self._until = self.leads(), float("-inf")
        if not led or self._seen is None:
            return
        free = Lease(transitions=self._seen.lease.transitions, version=self._seen.lease.version)
        with contextlib.suppress(ApiError, TimeoutError):
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self._store.write(free)
                log.info("%s has given the Lease back", self._me)
