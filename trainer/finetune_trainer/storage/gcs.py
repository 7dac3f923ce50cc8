"""Google Cloud Storage, gs://bucket/path, through Google's own client (docs/adr/0009-object-stores.md).

It has the whole chain of credentials (service account, workload identity, federation, the metadata server), resumable
uploads and crc32c of what it sends. Downloads are ours, as for S3: ranges that can be continued, hashed in order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import Use
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.storage import StoredObject
from finetune_trainer.storage.digest import sha256_of
from finetune_trainer.storage.failures import gcs_failures
from finetune_trainer.storage.ranges import Remote, download_ranges

KEY = "GOOGLE_SERVICE_ACCOUNT_KEY"
EMULATOR = "STORAGE_EMULATOR_HOST"
PART = 16 << 20
"""Bytes of an upload that are in memory, and sent again if the connection breaks."""
RETRY_TIME = 25.0
TIMEOUT = (4, 60)
"""Seconds to connect and between two bytes."""
SHA256 = "sha256"
"""Metadata key of uploads: whoever downloads the object again checks it."""
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


class GcsStore:
    """Objects of any bucket, with the credentials of one use."""

    def __init__(self, use: Use) -> None:
        self._use = use

    def read(self, uri: str) -> bytes:
        """Return an object. Raises NotFoundError."""
        with self._absence_explained(uri), self._failures(uri):
            content: bytes = self._blob(uri).download_as_bytes(**self._patience)
            return content

    def write(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Write an object; with only_if_absent, raises AlreadyExistsError if there is one."""
        condition = {"if_generation_match": 0} if only_if_absent else {}
        with self._failures(uri):
            self._blob(uri).upload_from_string(
                data, content_type="application/octet-stream", checksum="crc32c", **condition, **self._patience
            )

    def list(self, uri: str) -> list[StoredObject]:
        """Return the object at the URI or those below it as a folder, sorted by path."""
        bucket, key = _address(uri)
        with self._failures(uri):
            if key and (itself := self._client.bucket(bucket).get_blob(key, **self._patience)):
                return [_stored(itself, key)]
            prefix = f"{key}/" if key else ""
            found = [_stored(blob, prefix) for blob in self._client.list_blobs(bucket, prefix=prefix, **self._patience)]
        # Consoles leave empty objects named "folder/" behind.
        return sorted((item for item in found if not item.path.endswith("/") and item.path), key=lambda item: item.path)

    def download(self, uri: str, path: Path) -> str:
        """Fetch one object into a file, atomically and resuming a partial one; return its sha256."""
        blob = self._blob(uri)
        with self._absence_explained(uri), self._failures(uri):
            blob.reload(**self._patience)
            generation = blob.generation

            def fetch(first: int, last: int) -> bytes:
                # raw: bytes as they are stored, whatever their Content-Encoding.
                piece: bytes = self._blob(uri).download_as_bytes(
                    start=first, end=last, raw_download=True, if_generation_match=generation, **self._patience
                )
                return piece

            remote = Remote(
                uri=uri,
                size=int(blob.size),
                etag=_etag(blob),
                sha256=(blob.metadata or {}).get(SHA256),
                endpoint=self._endpoint,
                fetch=fetch,
            )
            return download_ranges(remote, path)

    def upload(self, path: Path, uri: str) -> str:
        """Store one file by a resumable upload; it becomes visible at its end. Return its sha256."""
        blob = self._blob(uri)
        with self._failures(uri):
            digest = sha256_of(path)
            blob.metadata, blob.chunk_size = {SHA256: digest}, PART
            blob.upload_from_filename(
                str(path), content_type="application/octet-stream", checksum="crc32c", **self._patience
            )
            return digest

    def delete(self, uri: str) -> None:
        """Delete the object at the URI or those below it; nothing there is no error."""
        bucket, base = _address(uri)
        names = [f"{base}/{item.path}".strip("/") if item.path else base for item in self.list(uri)]
        with self._failures(uri):
            self._client.bucket(bucket).delete_blobs(names, on_error=lambda _: None, **self._patience)

    def _blob(self, uri: str) -> Any:
        bucket, key = _address(uri)
        return self._client.bucket(bucket).blob(key)

    def _failures(self, uri: str) -> Any:
        return gcs_failures(uri, use=self._use, endpoint=self._endpoint)

    @contextmanager
    def _absence_explained(self, uri: str) -> Iterator[None]:
        """Find out, where there is no object, whether there is a bucket."""
        try:
            yield
        except NotFoundError:
            bucket, _ = _address(uri)
            with self._failures(uri):
                next(iter(self._client.list_blobs(bucket, max_results=1, **self._patience)), None)
            raise

    @property
    def _endpoint(self) -> str:
        return os.environ.get(EMULATOR) or "Google Cloud Storage"

    @cached_property
    def _patience(self) -> dict[str, Any]:
        from google.cloud.storage.retry import DEFAULT_RETRY

        return {"retry": DEFAULT_RETRY.with_timeout(RETRY_TIME), "timeout": TIMEOUT}

    @cached_property
    def _client(self) -> Any:
        """The client: with this use's key, else the plain one, else the machine's own (default credentials)."""
        from google.cloud.storage import Client

        credentials, project = self._credentials()
        return Client(project=project or "none", credentials=credentials)

    def _credentials(self) -> tuple[Any, str | None]:
        import google.auth
        from google.auth.credentials import AnonymousCredentials

        if os.environ.get(EMULATOR):
            return AnonymousCredentials(), None
        if not (key := os.environ.get(f"{self._use}{KEY}") or os.environ.get(KEY)):
            credentials, project = google.auth.default(scopes=[_SCOPE])
            return credentials, project
        try:
            return _from_key(json.loads(key)), None
        except (ValueError, AttributeError, TypeError) as error:
            raise TrainerError(
                ExitCode.STORAGE_ACCESS_DENIED,
                f"{KEY} in the Secret of {self._use.value.rstrip('_').lower()}.secretRef (here {self._use}{KEY}) is no "
                "key: it must be the JSON of a service account or of workload identity federation.",
            ) from error


def _from_key(key: dict[str, Any]) -> Any:
    """Return the credentials of a key file. Those that would run a program of their own are refused."""
    from google.auth import identity_pool
    from google.oauth2 import service_account

    match key.get("type"):
        case "service_account":
            return service_account.Credentials.from_service_account_info(key, scopes=[_SCOPE])
        case "external_account" if "executable" not in key.get("credential_source", {}):
            return identity_pool.Credentials.from_info(key, scopes=[_SCOPE])
        case kind:
            raise ValueError(f"a key of type {kind}")


def _address(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("gs://").partition("/")
    return bucket, key.strip("/")


def _stored(blob: Any, prefix: str) -> StoredObject:
    return StoredObject(path=blob.name.removeprefix(prefix), size=int(blob.size), etag=_etag(blob))


def _etag(blob: Any) -> str:
    """Return the generation: Google's own number of an object's content."""
    return str(blob.generation)
