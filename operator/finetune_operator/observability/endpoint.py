"""GET /metrics, on a port of its own: a scraper needs no token, and reaches nothing else here."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from finetune_operator.settings import parse_bind


class MetricsEndpoint:
    """Serves the text while it is entered; a bind of "" serves nothing."""

    def __init__(self, *, bind: str, text: Callable[[], bytes]) -> None:
        self._bind, self._text = bind, text
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        if not self._bind:
            return self
        app = web.Application()
        app.router.add_get("/metrics", self._serve)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        host, port = parse_bind(self._bind, variable="FINETUNE_METRICS_BIND")
        await web.TCPSite(self._runner, host, port).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner:
            await self._runner.cleanup()

    async def _serve(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
