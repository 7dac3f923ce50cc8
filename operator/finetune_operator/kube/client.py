"""A thin JSON client over `kubernetes.aio`: its configuration, credentials and connections, raw bodies.

Decoding into the client's models costs three times the CPU (kopf.md, section 9), and nothing here needs them.
"""

from __future__ import annotations

import json
import os
from types import TracebackType
from typing import Any

import aiohttp
from kubernetes.aio import client, config

from finetune_operator.kube.errors import error_for
from finetune_operator.runtime.gateway import TransientError

Body = dict[str, Any]
_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
_NOT_FOUND, _OK = 404, 300


class KubeClient:
    """Requests to the API server. Use as an async context manager."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls) -> KubeClient:
        """Connect with $KUBECONFIG where it is set, else as the pod's ServiceAccount."""
        configuration = client.Configuration()
        if "KUBECONFIG" in os.environ:
            # The file is named here: by itself the library reads $KUBECONFIG once, when it is imported.
            await config.load_kube_config(config_file=os.environ["KUBECONFIG"], client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)
        return cls(client.ApiClient(configuration))

    async def __aenter__(self) -> KubeClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._api.close()

    async def get(self, path: str, query: dict[str, str | int] | None = None) -> Body | None:
        """GET an object or list; None if there is none."""
        return await self._request("GET", path, query=query)

    async def post(self, path: str, body: Body, query: dict[str, str | int] | None = None) -> Body:
        """POST an object. Raises ConflictError if its name is taken."""
        return await self._request("POST", path, query=query, body=body) or {}

    async def put(self, path: str, body: Body) -> Body | None:
        """PUT an object; None if it is gone."""
        return await self._request("PUT", path, body=body)

    async def merge(self, path: str, body: Body) -> Body | None:
        """PATCH an object by a JSON merge patch; None if it is gone."""
        return await self._request("PATCH", path, body=body, content_type="application/merge-patch+json")

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
        content_type: str = "application/json",
    ) -> Body | None:
        """Raises ApiError; a 404 to anything but POST is None."""
        try:
            response = await self._exchange(method, path, query=query, body=body, content_type=content_type)
            status, data = response.status, await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise TransientError(f"{method} {path}: {type(error).__name__}: {error}") from error
        if status == _NOT_FOUND and method != "POST":
            return None
        if status >= _OK:
            raise error_for(status, data, f"{method} {path}", retry_after=response.headers.get("Retry-After"))
        try:
            parsed: Body = json.loads(data)
        except ValueError as error:  # whoever stands before the API server has answered in its place
            raise TransientError(f"{method} {path}: {status}, but no JSON") from error
        return parsed

    async def _exchange(
        self, method: str, path: str, *, query: dict[str, str | int] | None, body: Body | None, content_type: str
    ) -> aiohttp.ClientResponse:
        serialized = await self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        response: aiohttp.ClientResponse = await self._api.call_api(*serialized, _request_timeout=_TIMEOUT)
        return response
