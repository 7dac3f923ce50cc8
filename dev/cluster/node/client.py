"""The node's client of the API server: plain JSON, one identity, and a switch to cut the line.

`online` is how a node gets lost in a test: while it is cleared every request waits and
every watch ends, so that to the control plane the machine is simply gone.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

Manifest = dict[str, Any]
USER_AGENT = "process-node"  # shows in managedFields as who wrote what
STRATEGIC_MERGE = "application/strategic-merge-patch+json"
TIMEOUT = aiohttp.ClientTimeout(total=30)
WATCH_SECONDS = 300


class ApiError(Exception):
    """The API server refused; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


# What a request may end with on a busy machine; met by trying again.
FAILURES = (ApiError, aiohttp.ClientError, TimeoutError)


class Client:
    """Requests as one user."""

    def __init__(self, session: aiohttp.ClientSession, *, server: str, token: str) -> None:
        self._session = session
        self._server = server
        self._headers = {"Authorization": f"Bearer {token}", "User-Agent": USER_AGENT}
        self.online = asyncio.Event()
        self.online.set()

    async def get(self, path: str, **params: str) -> Manifest:
        """GET an object or a list."""
        return await self._send("GET", path, params=params)

    async def post(self, path: str, body: Manifest) -> Manifest:
        """Create an object."""
        return await self._send("POST", path, body=body)

    async def patch(self, path: str, body: Manifest) -> Manifest:
        """Merge into an object; lists with a key keep the entries of others."""
        return await self._send("PATCH", path, body=body, content_type=STRATEGIC_MERGE)

    async def delete(self, path: str, body: Manifest) -> Manifest:
        """Delete an object with options."""
        return await self._send("DELETE", path, body=body)

    async def watch(self, path: str, *, version: str, **params: str) -> AsyncIterator[tuple[str, Manifest]]:
        """Yield events until the server, the line or the switch ends it."""
        await self.online.wait()
        query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true", **params}
        query["timeoutSeconds"] = str(WATCH_SECONDS)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        url = self._server + path
        async with self._session.get(url, params=query, headers=self._headers, timeout=timeout) as answer:
            await _checked(answer)
            async for line in _lines(answer.content):
                if not self.online.is_set():
                    return
                event = json.loads(line)
                yield event["type"], event["object"]

    async def _send(
        self,
        method: str,
        path: str,
        *,
        body: Manifest | None = None,
        params: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        await self.online.wait()
        headers = {**self._headers, "Content-Type": content_type}
        data = None if body is None else json.dumps(body)
        url = self._server + path
        async with self._session.request(
            method, url, data=data, params=params, headers=headers, timeout=TIMEOUT
        ) as answer:
            await _checked(answer)
            decoded: Manifest = await answer.json(content_type=None)
            return decoded


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    # Not readline(): it gives up on lines longer than its buffer.
    pending = b""
    async for chunk in stream.iter_any():
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line


async def _checked(answer: aiohttp.ClientResponse) -> None:
    if not answer.ok:
        text = await answer.text()
        try:
            message = json.loads(text)["message"]
        except (ValueError, KeyError, TypeError):
            message = text
        raise ApiError(answer.status, message)
