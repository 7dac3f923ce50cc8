"""The status server: HTTPS, one route for posts, in the operator's own event loop.

It speaks Kubeflow Trainer's protocol (kubeflow/trainer, pkg/statusserver), so that transformers' own callback reports
without any code of ours. Results never depend on it: the last word is the pod's termination message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Self

from aiohttp import web

from finetune_contract.progress import MAX_BODY_BYTES
from finetune_operator.progress.endpoint import StatusEndpoint
from finetune_operator.progress.refusals import RefusalError
from finetune_operator.progress.tls import TlsKeeper
from finetune_operator.settings import parse_bind, progress_path

log = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class StatusServer:
    """Listens from `start` to `stop`; also an async context manager."""

    def __init__(
        self, *, bind: str, endpoint: StatusEndpoint, tls: TlsKeeper, ready: Callable[[], bool] = lambda: True
    ) -> None:
        """`ready` is what the readiness probe is told, over the same TLS that trainers speak."""
        self._host, self._port = parse_bind(bind, variable="FINETUNE_STATUS_BIND")
        self._tls = tls
        # Trainers keep no connection: an idle one is worth little. The access log would be a line a post.
        app = build_app(endpoint, ready)
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=15, shutdown_timeout=2)
        self._renewal: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Make or read the certificates, then listen. Raises TlsSecretError, OSError."""
        await self._tls.refresh()
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, ssl_context=self._tls.context)
        await site.start()
        self._renewal = asyncio.create_task(self._tls.keep(), name="tls-renewal")
        log.info("status server listens on port %d", self.port)

    async def stop(self) -> None:
        """Answer what is under way, then close."""
        if self._renewal:
            self._renewal.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewal
        await self._runner.cleanup()

    @property
    def port(self) -> int:
        """The port that it listens on, chosen by the system where bind says 0."""
        return int(self._runner.addresses[0][1])

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def build_app(endpoint: StatusEndpoint, ready: Callable[[], bool]) -> web.Application:
    """Return the application: the route of posts, that of the kubelet's probe, and `Status` for every error."""

    async def readyz(_request: web.Request) -> web.Response:
        return web.Response(text="ok") if ready() else web.Response(status=503, text="nothing is known yet")

    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_status])
    app.router.add_post(progress_path("{namespace}", "{name}"), endpoint.handle)
    app.router.add_get("/readyz", readyz)
    return app


@web.middleware
async def _errors_as_status(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return RefusalError(error.status, error.reason or "").response()
    except Exception:
        log.exception("post to %r failed", request.path)
        return RefusalError(500, "the operator failed; its log says why").response()
