"""Object storage behind one small Protocol: S3, Google's, Azure's and folders look the same to every stage.

Errors that only storage can know become `TrainerError` here (STORAGE_ACCESS_DENIED, BUCKET_NOT_FOUND,
STORAGE_UNAVAILABLE, DISK_FULL); absence and lost races are `NotFoundError` and `AlreadyExistsError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import Use
from finetune_trainer.errors import TrainerError


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object below a prefix."""

    path: str
    """Relative to the listed URI; "" when the URI names the object itself."""
    size: int
    """Bytes."""
    etag: str
    """Changes with the content: S3's ETag, or size and mtime of a file."""


class Store(Protocol):
    """Whole objects by full URI. Every write is atomic: an object is there completely or not at all."""

    def read(self, uri: str) -> bytes:
        """Return an object. Raises NotFoundError."""

    def write(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Write an object; with only_if_absent, raises AlreadyExistsError if there is one (If-None-Match: *)."""

    def list(self, uri: str) -> list[StoredObject]:
        """Return the object at the URI or those below it as a folder, sorted by path; empty if there are none."""

    def download(self, uri: str, path: Path) -> str:
        """Fetch one object into a file, atomically and resuming a partial one; return its sha256.

        Raises NotFoundError.
        """

    def upload(self, path: Path, uri: str) -> str:
        """Store one file; return its sha256."""

    def delete(self, uri: str) -> None:
        """Delete the object at the URI or those below it; nothing there is no error."""


def open_store(uri: str, use: Use) -> Store:
    """Return the store for a URI with the credentials of that use. Raises TrainerError for an unknown scheme."""
    if uri.startswith("s3://"):
        from finetune_trainer.storage.s3 import S3Store

        return S3Store(use)
    if uri.startswith("gs://"):
        from finetune_trainer.storage.gcs import GcsStore

        return GcsStore(use)
    if uri.startswith("az://"):
        from finetune_trainer.storage.azure import AzureStore

        return AzureStore(use)
    if uri.startswith(("file://", "pvc://")):
        from finetune_trainer.storage.local import FolderStore

        return FolderStore(use)
    raise TrainerError(
        ExitCode.CONFIG_INVALID, f"{field_of(use)}.uri is {uri!r}: use s3://, gs://, az://, pvc:// or file://."
    )


def field_of(use: Use) -> str:
    """Return the spec's field that a use stands for: model, dataset or output."""
    return use.value.rstrip("_").lower()
