"""A thin JSON client over `kubernetes.aio`: its configuration, credentials and connections, raw bodies.

Decoding into the client's models costs three times the CPU (kopf.md, section 9), and nothing here needs them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

import aiohttp
from kubernetes.aio import client, config

from finetune_operator.kube.errors import error_for
from finetune_operator.runtime.gateway import TransientError

Body = dict[str, Any]
_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
_WATCHING = aiohttp.ClientTimeout(total=None, connect=5, sock_read=150)
"""The server sends a bookmark every minute: where nothing comes for longer, the connection is dead."""
_NOT_FOUND, _OK = 404, 300
_JSON = "application/json"
METADATA_ALONE = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""Accept header with which a LIST brings no specs and statuses: 1 KB a node in place of 20."""
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""The same for one object: whoever writes it knows the rest."""

_SESSION = {"trust_env": False}
"""Else aiohttp looks for a .netrc and for proxies with every request, in a thread each time: three quarters of what a
request costs, and five milliseconds where the loop is busy. kopf's watches do not either; a kubeconfig's proxy counts.
"""

Answered = Callable[[str, str, str, int], None]
"""Is told of each request: its method and path, the status code of the answer or "<error>", and when it began in ns."""


class KubeClient:
    """Requests to the API server. Use as an async context manager."""

    def __init__(self, api: client.ApiClient, *, answered: Answered | None = None) -> None:
        self._api, self._answered = api, answered or _nobody
        api.configuration.client_session_kwargs = _SESSION

    @classmethod
    async def connect(cls, *, answered: Answered | None = None) -> KubeClient:
        """Connect with $KUBECONFIG where it is set, else as the pod's ServiceAccount."""
        configuration = client.Configuration()
        if "KUBECONFIG" in os.environ:
            # The file is named here: by itself the library reads $KUBECONFIG once, when it is imported.
            await config.load_kube_config(config_file=os.environ["KUBECONFIG"], client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)
        return cls(client.ApiClient(configuration), answered=answered)

    async def __aenter__(self) -> KubeClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._api.close()

    async def get(self, path: str, query: dict[str, str | int] | None = None, *, accept: str = _JSON) -> Body | None:
        """GET an object or list; None if there is none."""
        return await self._request("GET", path, query=query, accept=accept)

    async def post(self, path: str, body: Body) -> Body:
        """POST a request that the API server answers, as a review."""
        return await self._request("POST", path, body=body) or {}

    async def create(self, path: str, body: Body) -> Body:
        """POST an object; return its metadata. Raises ConflictError if its name is taken."""
        created = await self._request("POST", path, body=body, accept=_METADATA) or {}
        return _metadata(created, f"POST {path}")

    async def put(self, path: str, body: Body) -> Body | None:
        """PUT an object; None if it is gone."""
        return await self._request("PUT", path, body=body)

    async def merge(self, path: str, body: Body) -> Body | None:
        """PATCH an object by a JSON merge patch; return its metadata, None if it is gone."""
        kind = "application/merge-patch+json"
        merged = await self._request("PATCH", path, body=body, content_type=kind, accept=_METADATA)
        return None if merged is None else _metadata(merged, f"PATCH {path}")

    async def apply(self, path: str, body: Body, *, manager: str) -> Body | None:
        """Server-side apply: create or change, taking over whatever somebody else has put into these fields."""
        query: dict[str, str | int] = {"fieldManager": manager, "force": "true"}
        return await self._request("PATCH", path, query=query, body=body, content_type="application/apply-patch+yaml")

    async def delete(self, path: str, body: Body) -> None:
        """DELETE an object; nothing there is no error."""
        await self._request("DELETE", path, body=body)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str | int] | None = None,
        body: Body | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> Body | None:
        """Raises ApiError; a 404 to anything but POST is None."""
        began = time.time_ns()
        try:
            headers = {"Accept": accept, "Content-Type": content_type}
            response = await self._send(method, path, query=query, body=body, headers=headers, limits=_TIMEOUT)
            status, data = response.status, await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            self._answered(method, path, "<error>", began)
            raise TransientError(f"{method} {path}: {type(error).__name__}: {error}") from error
        self._answered(method, path, str(status), began)
        if status == _NOT_FOUND and method != "POST":
            return None
        if status >= _OK:
            raise error_for(status, data, f"{method} {path}", retry_after=response.headers.get("Retry-After"))
        try:
            parsed: Body = json.loads(data)
        except ValueError as error:  # whoever stands before the API server has answered in its place
            raise TransientError(f"{method} {path}: {status}, but no JSON") from error
        return parsed

    async def stream(self, path: str, query: dict[str, str | int]) -> AsyncIterator[Body]:
        """Yield the events of a watch until the server ends it. Raises ApiError."""
        headers = {"Accept": _JSON, "Content-Type": _JSON}
        try:
            response = await self._send("GET", path, query=query, body=None, headers=headers, limits=_WATCHING)
            if response.status >= _OK:
                raise error_for(response.status, await response.read(), f"watch {path}")
            try:
                async for line in response.response.content:
                    yield json.loads(line)
            finally:
                response.response.close()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise TransientError(f"watch {path}: {type(error).__name__}: {error}") from error

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str | int] | None,
        body: Body | None,
        headers: dict[str, str],
        limits: aiohttp.ClientTimeout,
    ) -> Any:
        _, url, signed, *_ = await self._api.param_serialize(
            method, path, query_params=list((query or {}).items()), header_params=headers, auth_settings=["BearerToken"]
        )
        # The body does not go through `param_serialize`, which looks for models of its own in all of its leaves.
        return await self._api.call_api(method, url, signed, body, _request_timeout=limits)


def _metadata(answer: Body, what: str) -> Body:
    metadata: Body | None = answer.get("metadata")
    if not metadata or "uid" not in metadata or "resourceVersion" not in metadata:
        raise TransientError(f"{what}: the answer is no object")
    return metadata


def _nobody(method: str, path: str, code: str, began: int) -> None:
    """Do nothing."""
