"""The operator's one Secret: the status server's certificates. No other Secret is ever read."""

from __future__ import annotations

from base64 import b64decode, b64encode

from finetune_operator.kube.client import Body, KubeClient
from finetune_operator.runtime.gateway import ConflictError


class KubeTlsStore:
    """Implements `progress.ports.TlsStore`."""

    def __init__(self, api: KubeClient, *, namespace: str, name: str) -> None:
        self._api, self._path = api, f"/api/v1/namespaces/{namespace}/secrets/{name}"
        self._last: Body = {}

    async def read(self) -> dict[str, bytes] | None:
        """Return the Secret's data, None when there is no such Secret. Raises ApiError."""
        found = await self._api.get(self._path)
        if found is None:
            return None
        self._last = found
        return {key: b64decode(value) for key, value in (found.get("data") or {}).items()}

    async def write(self, data: dict[str, bytes]) -> bool:
        """Replace the data that was read; False when somebody else wrote since. Raises ApiError."""
        body = {**self._last, "data": {key: b64encode(value).decode() for key, value in data.items()}}
        try:
            written = await self._api.put(self._path, body)
        except ConflictError:
            return False
        self._last = written or {}
        return written is not None
