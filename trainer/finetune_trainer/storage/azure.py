"""Azure Blob Storage, az://container/path, through obstore (docs/adr/0009-object-stores.md).

Uploads in blocks, conditional writes, retries and the chain of credentials are obstore's: account key, SAS, client
secret, workload identity, managed identity. What is ours is the same as for S3: downloads in ranges that can be
continued, and a sha256 with every upload that is checked again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetune_contract.run_config import Use
from finetune_trainer.errors import NotFoundError
from finetune_trainer.storage import StoredObject
from finetune_trainer.storage.digest import sha256_of
from finetune_trainer.storage.failures import azure_failures
from finetune_trainer.storage.ranges import Remote, download_ranges

PART = 16 << 20
PARTS_AT_ONCE = 4
"""With four files at once, at most PART x PARTS_AT_ONCE x 4 = 256 MB of parts are in memory."""
RETRIES = 4
RETRY_TIME = timedelta(seconds=25)
CONNECT_TIMEOUT = "4s"
READ_TIMEOUT = "60s"
SHA256 = "sha256"
"""Metadata key of uploads: whoever downloads the object again checks it."""

ENDPOINT = "AZURE_STORAGE_ENDPOINT"
VARIABLES = {
    "AZURE_STORAGE_ACCOUNT_NAME": "account_name",
    "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
    "AZURE_STORAGE_SAS_TOKEN": "sas_key",
    ENDPOINT: "endpoint",
    "AZURE_TENANT_ID": "tenant_id",
    "AZURE_CLIENT_ID": "client_id",
    "AZURE_CLIENT_SECRET": "client_secret",
    "AZURE_FEDERATED_TOKEN_FILE": "federated_token_file",
    "AZURE_AUTHORITY_HOST": "authority_host",
}
"""Environment variables, as Azure's own tools know them, and what obstore calls them."""


class AzureStore:
    """Blobs of any container, with the credentials of one use."""

    def __init__(self, use: Use) -> None:
        self._use = use

    def read(self, uri: str) -> bytes:
        """Return an object. Raises NotFoundError."""
        bucket, key = self._place(uri)
        with self._failures(uri):
            return bytes(bucket.get(key).bytes())

    def write(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Write an object; with only_if_absent, raises AlreadyExistsError if there is one."""
        bucket, key = self._place(uri)
        with self._failures(uri):
            bucket.put(key, data, mode="create" if only_if_absent else "overwrite", use_multipart=False)

    def list(self, uri: str) -> list[StoredObject]:
        """Return the object at the URI or those below it as a folder, sorted by path."""
        bucket, key = self._place(uri)
        with self._failures(uri):
            if key and (itself := self._exactly(bucket, key)):
                return [itself]
            # obstore lists by whole segments of the path: what lies beside is not in it.
            found = [_stored(item, key) for page in bucket.list(prefix=key or None) for item in page]
        return sorted((item for item in found if item.path and not item.path.endswith("/")), key=lambda item: item.path)

    def download(self, uri: str, path: Path) -> str:
        """Fetch one object into a file, atomically and resuming a partial one; return its sha256."""
        bucket, key = self._place(uri)
        with self._absence_explained(uri), self._failures(uri):
            answer = bucket.get(key, options={"head": True})
            meta, attributes = answer.meta, answer.attributes

            def fetch(first: int, last: int) -> bytes:
                options = {"range": (first, last + 1), "if_match": meta["e_tag"]}
                return bytes(bucket.get(key, options=options).bytes())

            remote = Remote(
                uri=uri,
                size=int(meta["size"]),
                etag=_etag(meta),
                sha256=attributes.get(SHA256),
                endpoint=self._endpoint,
                fetch=fetch,
            )
            return download_ranges(remote, path)

    def upload(self, path: Path, uri: str) -> str:
        """Store one file, in parallel parts that become visible together; return its sha256."""
        bucket, key = self._place(uri)
        with self._failures(uri):
            digest = sha256_of(path)
            bucket.put(
                key,
                path,
                attributes={SHA256: digest},
                use_multipart=path.stat().st_size > PART,
                chunk_size=PART,
                max_concurrency=PARTS_AT_ONCE,
            )
            return digest

    def delete(self, uri: str) -> None:
        """Delete the object at the URI or those below it; nothing there is no error."""
        bucket, key = self._place(uri)
        keys = [f"{key}/{item.path}".strip("/") if item.path else key for item in self.list(uri)]
        with self._failures(uri):
            if keys:
                bucket.delete(keys)

    def _place(self, uri: str) -> tuple[Any, str]:
        container, _, key = uri.removeprefix("az://").partition("/")
        with azure_failures(uri, use=self._use, endpoint=self._endpoint, connecting=True):
            return _container(container, tuple(sorted(self._settings.items()))), key.strip("/")

    @property
    def _settings(self) -> dict[str, str]:
        """Return this use's variables, else the plain ones: a use's key never meets another account's name."""
        own = {name: value for name in VARIABLES if (value := os.environ.get(f"{self._use}{name}"))}
        plain = {name: value for name in VARIABLES if (value := os.environ.get(name))}
        # The endpoint is the platform's, whoever's the credentials are.
        shared = {name: value for name, value in plain.items() if name == ENDPOINT}
        return {VARIABLES[name]: value for name, value in ({**shared, **own} if own else plain).items()}

    @property
    def _endpoint(self) -> str:
        return self._settings.get("endpoint") or "Azure Blob Storage"

    def _failures(self, uri: str) -> Any:
        return azure_failures(uri, use=self._use, endpoint=self._endpoint)

    @contextmanager
    def _absence_explained(self, uri: str) -> Iterator[None]:
        """Find out, where there is no blob, whether there is a container: an answer to HEAD has no body to say it."""
        try:
            yield
        except NotFoundError:
            container, _ = self._place(uri)
            with self._failures(uri):
                next(iter(container.list(chunk_size=1)), None)
            raise

    def _exactly(self, bucket: Any, key: str) -> StoredObject | None:
        try:
            return _stored(bucket.head(key), key)
        except FileNotFoundError:
            return None


@lru_cache(maxsize=16)
def _container(name: str, settings: tuple[tuple[str, str], ...]) -> Any:
    """Return a client; kept, since each has connections of its own."""
    from obstore.store import AzureStore as Client

    config = dict(settings)
    return Client(
        name,
        config=config,
        client_options={
            "allow_http": config.get("endpoint", "").startswith("http://"),
            "connect_timeout": CONNECT_TIMEOUT,
            "timeout": READ_TIMEOUT,
        },
        retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_TIME},
    )


def _stored(item: Any, base: str) -> StoredObject:
    path = item["path"].removeprefix(base).lstrip("/") if base else item["path"]
    return StoredObject(path=path, size=int(item["size"]), etag=_etag(item))


def _etag(item: Any) -> str:
    return str(item["e_tag"]).strip('"')
