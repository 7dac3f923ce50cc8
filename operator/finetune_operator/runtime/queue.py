"""The work queue, with client-go's semantics: a key is in it once, and never worked on twice at a time.

A key that is added while it is worked on is worked on again afterwards. Keys can be added for later; a key that
failed comes back after its own backoff. kopf's queue does none of this since 1.42 (kopf.md, section 1).

Beyond client-go namespaces take turns: however many jobs one tenant has, another one's waits for one of them at most.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque

from finetune_operator.api.views import Key

FIRST_BACKOFF, MAX_BACKOFF = 1.0, 300.0
MAX_HOLD = 60.0


class Turns:
    """Keys that wait: one of each namespace in turn, and among those of one namespace first come, first served."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Key]] = {}
        self._turns: deque[str] = deque()
        """The namespaces that have a key, the next one first."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, key: Key) -> None:
        """Put a key at the end of its namespace's line."""
        line = self._lines.setdefault(key[0], deque())
        if not line:
            self._turns.append(key[0])
        line.append(key)
        self._count += 1

    def popleft(self) -> Key:
        """Take the next key. Raises IndexError if there is none."""
        namespace = self._turns.popleft()
        line = self._lines[namespace]
        key = line.popleft()
        self._count -= 1
        if line:
            self._turns.append(namespace)
        else:
            del self._lines[namespace]
        return key


class WorkQueue:
    """Keys of FineTuneJobs that have to be looked at. Bound to the running event loop."""

    def __init__(self) -> None:
        self._ready = Turns()
        self._dirty: set[Key] = set()
        self._processing: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._due: dict[Key, float] = {}
        self._later: list[tuple[float, Key]] = []
        self._wake = asyncio.Event()
        self._closed = False
        self._held_until = 0.0

    def add(self, key: Key) -> None:
        """Have a key looked at as soon as a worker is free."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._processing:
            self._ready.append(key)
            self._wake.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Have a key looked at in some seconds; the earliest of several times counts."""
        if seconds <= 0:
            return self.add(key)
        due = self._now() + seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._later, (due, key))
            self._wake.set()
        return None

    def hold(self, seconds: float) -> None:
        """Give out nothing for so long: the API server has asked to be left alone, whatever happens meanwhile."""
        self._held_until = max(self._held_until, self._now() + min(seconds, MAX_HOLD))

    def retry(self, key: Key) -> float:
        """Have a key looked at after its backoff, which doubles with each failure; return the seconds."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        delay: float = min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** min(count - 1, 16)) * random.uniform(0.8, 1.2)  # noqa: S311
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: Key) -> None:
        """Forget a key's failures."""
        self._failures.pop(key, None)

    def close(self) -> None:
        """Give out no more keys: every `get` returns None."""
        self._closed = True
        self._wake.set()

    async def get(self) -> Key | None:
        """Wait for a key and take it; None once closed. Call `done` when finished with it."""
        while not self._closed and not self._has_one():
            self._wake.clear()
            self._promote()
            if self._has_one():
                break
            await self._sleep()
            self._promote()
        if self._closed:
            return None
        key = self._ready.popleft()
        self._dirty.discard(key)
        self._processing.add(key)
        return key

    def done(self, key: Key) -> None:
        """Give a key back."""
        self._processing.discard(key)
        if key in self._dirty:
            self._ready.append(key)
            self._wake.set()

    def depth(self) -> int:
        """Return how many keys wait for a worker."""
        return len(self._ready)

    def _has_one(self) -> bool:
        return bool(self._ready) and self._now() >= self._held_until

    def _promote(self) -> None:
        now = self._now()
        while self._later and self._later[0][0] <= now:
            due, key = heapq.heappop(self._later)
            if self._due.get(key) == due:  # an entry that an earlier one replaced is stale
                del self._due[key]
                self.add(key)

    async def _sleep(self) -> None:
        times = [self._later[0][0]] if self._later else []
        times += [self._held_until] if self._ready else []
        timeout = max(0.0, min(times) - self._now()) if times else None
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            pass

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
