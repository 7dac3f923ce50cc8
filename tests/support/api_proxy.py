"""A proxy in front of the real API server that makes faults, and counts what is written through it.

The operator's kubeconfig points here. Everything else in the cluster reaches the API server directly.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import aiohttp
from aiohttp import web

from dev.cluster.local import LocalCluster

T = TypeVar("T")


def _nothing(_number: int) -> bool:
    return False


_UNCOUNTED = ("/leases/", "/tokenreviews", "/endpointslices/", "/secrets/")
_NOT_HANDED_ON = {"host", "connection", "transfer-encoding", "content-length", "content-encoding", "accept-encoding"}


@dataclass
class Fault:
    """An answer that the next requests of a kind get in the API server's place."""

    status: int
    method: str = ""
    """Of any method when empty."""
    path: str = ""
    """A part of the path."""
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    after: bool = False
    """The API server has done it all the same: the answer is what gets lost."""
    met: int = 0
    """How often it struck."""

    def strikes(self, method: str, path: str) -> bool:
        """Whether a request meets it; counted."""
        hit = self.met < self.times and method.startswith(self.method) and self.path in path
        self.met += hit
        return hit

    def answer(self) -> web.Response:
        """Return it as the API server words it."""
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.status, "message": "by proxy"}
        return web.json_response(body, status=self.status, headers=self.headers)


class ApiProxy:
    """The proxy, in a thread of its own, until the end of its `with`."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._upstream, self._ca = cluster.server, str(cluster.ca_file)
        self.server = ""
        """Its own address."""
        self.writes: list[str] = []
        """What was written, but for what keeps the operator itself going: `METHOD path`, in order."""
        self.at: list[float] = []
        """When, in monotonic seconds."""
        self.faults: list[Fault] = []
        self.is_down = False
        """Whether connections are broken off."""
        self.delay = 0.0
        """Seconds that every answer takes longer."""
        self.holds_events = False
        """Whether watches say nothing: what they have to say comes later."""
        self.is_compacted = False
        """Whether a new watch is told that its version is too old."""
        self.before_write: Callable[[int], object] = _nothing
        """Called with the number of a write before the API server has it; where it says so, it never gets it."""
        self.after_write: Callable[[int], object] = _nothing
        """Called when the API server has done a write, before the operator hears of it."""
        self._watches: set[asyncio.Transport] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def cut_watches(self) -> None:
        """Break off every watch."""
        self._call(self._cut())

    def down_for(self, seconds: float) -> None:
        """Be away, watches as well, then come back."""
        self.is_down = True
        self.cut_watches()
        time.sleep(seconds)
        self.is_down = False

    def forget(self) -> None:
        """Forget what was written, and every fault."""
        self.writes.clear()
        self.at.clear()
        self.faults = []
        self.is_down = self.holds_events = self.is_compacted = False
        self.delay, self.before_write, self.after_write = 0.0, _nothing, _nothing

    def _call(self, todo: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(todo, self._loop).result(20)

    async def _cut(self) -> None:
        for transport in self._watches:
            transport.abort()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=self._ca), limit=0)
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.server = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._ready.set()
            await self._stop.wait()
            await self._cut()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        if self.is_down:
            transport.abort()
            return web.Response(status=502)
        if self.delay:
            await asyncio.sleep(self.delay)
        fault = next((f for f in self.faults if f.strikes(request.method, request.path)), None)
        if fault and not fault.after:
            return fault.answer()
        if "watch" in request.query:
            return await self._watch(request, transport)
        return await self._exchange(request, fault)

    async def _exchange(self, request: web.Request, fault: Fault | None) -> web.Response:
        counted = request.method != "GET" and not any(part in request.path for part in _UNCOUNTED)
        if counted and self.before_write(len(self.writes) + 1):
            raise web.HTTPBadGateway
        async with self._asked(request) as answer:
            body, status, kind = await answer.read(), answer.status, answer.headers.get("Content-Type", "")
        if counted and status < web.HTTPBadRequest.status_code:
            self.writes.append(f"{request.method} {request.path}")
            self.at.append(time.monotonic())
            self.after_write(len(self.writes))
        return fault.answer() if fault else web.Response(body=body, status=status, headers={"Content-Type": kind})

    async def _watch(self, request: web.Request, transport: asyncio.Transport) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": "application/json"})
        if self.is_compacted:
            gone = {"kind": "Status", "code": 410, "status": "Failure", "reason": "Expired", "message": "too old"}
            await stream.prepare(request)
            await stream.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return stream
        self._watches.add(transport)
        try:
            async with self._asked(request) as answer:
                stream.set_status(answer.status)
                await stream.prepare(request)
                async for chunk in answer.content.iter_any():
                    while self.holds_events:  # noqa: ASYNC110 - set in the test's thread
                        await asyncio.sleep(0.05)
                    await stream.write(chunk)
        except (aiohttp.ClientError, ConnectionError):
            transport.abort()
        finally:
            self._watches.discard(transport)
        return stream

    def _asked(self, request: web.Request) -> aiohttp.client._RequestContextManager:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _NOT_HANDED_ON}
        headers["Accept-Encoding"] = "identity"  # a long list would come compressed
        return self._session.request(
            request.method,
            f"{self._upstream}{request.raw_path}",
            headers=headers,
            data=request.content if request.can_read_body else None,
            timeout=aiohttp.ClientTimeout(total=None),
        )
