"""What a node tells of its pods arrives in the order in which it was."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from dev.cluster.node.client import Client
from dev.cluster.node.status import ContainerView, PodView, settle
from dev.cluster.node.teller import Teller


class SlowApi:
    """A fake of the API server: what it has received it does, a while later and though nobody waits for it."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self._doing: set[asyncio.Task[None]] = set()

    async def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Take a status, the first one more slowly than the others."""
        task = asyncio.create_task(self._do(body["status"]["phase"], 0.2 if not self._doing else 0.0))
        self._doing.add(task)
        await asyncio.shield(task)
        return {}

    async def settled(self) -> None:
        """Wait until everything is done that was received."""
        await asyncio.gather(*self._doing)

    async def _do(self, phase: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.phases.append(phase)


async def test_the_last_word_about_a_pod_is_how_it_ended() -> None:
    """A patch that was given up may still be done, after the next one: the pod would run for ever."""
    container = ContainerView("train", "image", {"running": {"startedAt": "2026-01-01T00:00:00Z"}})
    metadata = {"name": "pod", "namespace": "team", "uid": "uid"}
    view = PodView({"metadata": metadata}, init=[], main=[container], started="2026-01-01T00:00:00Z", address="")
    api, news = SlowApi(), asyncio.Event()
    teller = Teller(cast(Client, api), view, news=news)
    telling = asyncio.create_task(teller.run())
    news.set()
    await asyncio.sleep(0.05)  # the first status is on its way
    container.state = {"terminated": {"exitCode": 0}}
    settle(view)
    teller.finish()
    await telling
    await api.settled()
    assert api.phases == ["Running", "Succeeded"]
