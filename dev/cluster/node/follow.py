"""List and watch: one endless stream of what is there, what changed and what is gone.

A watch ends for many reasons (its time is over, the version is too old, the server or the
line went away). All are met the same way, by a fresh list; what has vanished meanwhile is
reported as gone, because no event ever will.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

from dev.cluster.node.client import FAILURES, Client, Manifest

PAUSE = 0.5
GONE = "DELETED"
log = logging.getLogger(__name__)


async def follow(client: Client, path: str, **params: str) -> AsyncIterator[tuple[str, Manifest]]:
    """Yield (event type, object) for ever; the first events are what exists now."""
    known: dict[str, Manifest] = {}
    while True:
        try:
            listed = await client.get(path, **params)
            for event in _differences(known, listed["items"]):
                yield event
            async for event in _watched(client, path, version=listed["metadata"]["resourceVersion"], **params):
                _remember(known, event)
                yield event
        except (*FAILURES, ValueError) as error:
            log.info("%s: %s; listing again", path, error)
            await asyncio.sleep(PAUSE)


async def _watched(client: Client, path: str, *, version: str, **params: str) -> AsyncIterator[tuple[str, Manifest]]:
    async for kind, item in client.watch(path, version=version, **params):
        if kind == "ERROR":  # usually 410: the version is too old
            return
        if kind != "BOOKMARK":
            yield kind, item


def _differences(known: dict[str, Manifest], items: list[Manifest]) -> list[tuple[str, Manifest]]:
    current = {item["metadata"]["uid"]: item for item in items}
    gone = [(GONE, item) for uid, item in known.items() if uid not in current]
    known.clear()
    known.update(current)
    return gone + [("MODIFIED", item) for item in items]


def _remember(known: dict[str, Manifest], event: tuple[str, Manifest]) -> None:
    kind, item = event
    if kind == GONE:
        known.pop(item["metadata"]["uid"], None)
    else:
        known[item["metadata"]["uid"]] = item
