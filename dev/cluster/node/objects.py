"""The objects that pods name: Secrets, ConfigMaps, claims and tokens, read as the node.

Read when needed and never kept, so that a Secret made a moment ago is seen. The Node
authorizer lets a node read only what its own pods name.
"""

import asyncio
import base64
import http
from collections.abc import Awaitable, Callable

from dev.cluster.node.client import ApiError, Client, Manifest

LAG_TRIES = 10
LAG_PAUSE = 0.1


class MissingObjectError(Exception):
    """A pod names something that is not there."""


class Objects:
    """What the pods of one namespace may name."""

    def __init__(self, client: Client, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    async def secret(self, name: str, *, optional: bool = False) -> Manifest | None:
        """Read a Secret."""
        return await self._named("secrets", name, optional=optional)

    async def config_map(self, name: str, *, optional: bool = False) -> Manifest | None:
        """Read a ConfigMap."""
        return await self._named("configmaps", name, optional=optional)

    async def folder_of_claim(self, name: str) -> Manifest:
        """Return the volume source behind a claim."""
        claim = await self._named("persistentvolumeclaims", name, optional=False) or {}
        volume = claim["spec"].get("volumeName")
        if not volume:
            raise MissingObjectError(f'claim "{name}" is not bound')
        found = await once_allowed(lambda: self._client.get(f"/api/v1/persistentvolumes/{volume}"))
        source: Manifest = found["spec"]
        return source

    async def token(self, account: str, *, pod: Manifest, audience: str | None, seconds: int) -> Manifest:
        """Ask for a token of a service account, bound to this pod."""
        metadata = pod["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
        spec: Manifest = {"boundObjectRef": bound, "expirationSeconds": seconds}
        if audience:
            spec["audiences"] = [audience]
        path = f"/api/v1/namespaces/{self._namespace}/serviceaccounts/{account}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = await once_allowed(lambda: self._client.post(path, request))
        status: Manifest = answer["status"]
        return status

    async def _named(self, kind: str, name: str, *, optional: bool) -> Manifest | None:
        path = f"/api/v1/namespaces/{self._namespace}/{kind}/{name}"
        try:
            return await once_allowed(lambda: self._client.get(path))
        except ApiError as error:
            if error.status not in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.FORBIDDEN):
                raise
            if optional and error.status == http.HTTPStatus.NOT_FOUND:
                return None
            raise MissingObjectError(str(error)) from error


async def once_allowed(send: Callable[[], Awaitable[Manifest]]) -> Manifest:
    """Send a request, again if forbidden: the authorizer learns of a pod a moment after it is bound."""
    for _ in range(LAG_TRIES):
        try:
            return await send()
        except ApiError as error:
            if error.status != http.HTTPStatus.FORBIDDEN:
                raise
            await asyncio.sleep(LAG_PAUSE)
    return await send()


def secret_values(secret: Manifest | None) -> dict[str, bytes]:
    """Decode a Secret's data."""
    return {key: base64.b64decode(value) for key, value in ((secret or {}).get("data") or {}).items()}


def config_map_values(config_map: Manifest | None) -> dict[str, bytes]:
    """Return a ConfigMap's data, text and binary."""
    found = config_map or {}
    text = {key: value.encode() for key, value in (found.get("data") or {}).items()}
    return text | {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}
