"""Folders as object storage: file:///path as it stands, pvc://claim/path below the folder of mounted claims.

Writes go to a temporary file beside the target, which is flushed to disk and renamed: a reader sees the old object or
the new one, even if the node dies in between.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import Use
from finetune_trainer.environment import claims_folder
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.storage import StoredObject, field_of
from finetune_trainer.storage.digest import PIECE
from finetune_trainer.storage.failures import file_failures

TEMPORARY = ".tmp-"


class FolderStore:
    """Files of this machine and of its mounted claims."""

    def __init__(self, use: Use) -> None:
        self._use = use

    def read(self, uri: str) -> bytes:
        """Return an object. Raises NotFoundError."""
        with file_failures(uri, use=self._use):
            path = local_path(uri, self._use)
            if path.is_dir():
                raise NotFoundError(uri)
            return path.read_bytes()

    def write(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Write an object; with only_if_absent, raises AlreadyExistsError if there is one."""
        put = _link_new if only_if_absent else os.replace
        with file_failures(uri, use=self._use), _atomically(self._target(uri), put) as file:
            file.write(data)

    def list(self, uri: str) -> list[StoredObject]:
        """Return the object at the URI or those below it as a folder, sorted by path."""
        base = local_path(uri, self._use)
        with file_failures(uri, use=self._use):
            if base.is_file():
                return [_stored(base, "")]
            files = sorted(path for path in base.rglob("*") if path.is_file() and not path.name.startswith(TEMPORARY))
            found = [_stored(path, path.relative_to(base).as_posix()) for path in files]
            return sorted(found, key=lambda item: item.path)

    def download(self, uri: str, path: Path) -> str:
        """Copy one object into a file, atomically; return its sha256."""
        with file_failures(uri, use=self._use):
            source = local_path(uri, self._use)
            if not source.is_file():
                raise NotFoundError(uri)
            return _copy(source, path)

    def upload(self, path: Path, uri: str) -> str:
        """Store one file; return its sha256."""
        with file_failures(uri, use=self._use):
            return _copy(path, self._target(uri))

    def delete(self, uri: str) -> None:
        """Delete the object at the URI or those below it; nothing there is no error."""
        path = local_path(uri, self._use)
        with file_failures(uri, use=self._use), suppress(FileNotFoundError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _target(self, uri: str) -> Path:
        path = local_path(uri, self._use)
        if uri.startswith("pvc://") and not claims_folder().joinpath(_parts(uri)[0]).is_dir():
            raise TrainerError(ExitCode.CONFIG_INVALID, f"{uri}: the claim {_parts(uri)[0]!r} is not mounted.")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def local_path(uri: str, use: Use) -> Path:
    """Return the path that a file:// or pvc:// URI stands for. Raises TrainerError for one that leaves its root."""
    parts = _parts(uri)
    if ".." in parts or not parts or (uri.startswith("file://") and not uri.startswith("file:///")):
        wanted = "write pvc://claim/path or file:///absolute/path, without .."
        raise TrainerError(ExitCode.CONFIG_INVALID, f"{field_of(use)}.uri is {uri!r}: {wanted}.")
    root = claims_folder() if uri.startswith("pvc://") else Path("/")
    return root.joinpath(*parts)


def _parts(uri: str) -> list[str]:
    return [part for part in uri.partition("://")[2].split("/") if part not in ("", ".")]


def _stored(path: Path, name: str) -> StoredObject:
    status = path.stat()
    return StoredObject(path=name, size=status.st_size, etag=f"{status.st_size}-{status.st_mtime_ns}")


def _copy(source: Path, target: Path) -> str:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with source.open("rb") as reader, _atomically(target, os.replace) as writer:
        while piece := reader.read(PIECE):
            writer.write(piece)
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _atomically(target: Path, put: Callable[[Path, Path], None]) -> Iterator[IO[Any]]:
    """Yield a temporary file that `put` moves to the target when the block ends well."""
    temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _link_new(temporary: Path, target: Path) -> None:
    """Give the file its name only if nobody has it: a link, unlike a rename, never replaces."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:
        # Some network file systems have no links: taking the name first is exclusive, too.
        with target.open("xb"):
            temporary.replace(target)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every network file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
