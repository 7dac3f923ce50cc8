"""Whole folders to and from storage, several files at a time, every one with its sha256."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TypeVar

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import OutputFile
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.storage import Store, StoredObject

FILES_AT_ONCE = 4

Item = TypeVar("Item")

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all, after every file."""


def download_folder(
    store: Store,
    uri: str,
    into: Path,
    *,
    only: Iterable[str] = ("*",),
    progress: Progress | None = None,
) -> list[OutputFile]:
    """Fetch the objects below a URI whose file names match one of the patterns.

    Raises NotFoundError if there are none.
    """
    found = matching(store.list(uri), only)
    if not found:
        raise NotFoundError(uri)
    return download_objects(store, uri, found, into, progress=progress)


def download_objects(
    store: Store, uri: str, objects: list[StoredObject], into: Path, *, progress: Progress | None = None
) -> list[OutputFile]:
    """Fetch those objects of a listing of the URI."""
    count = _Counter(sum(item.size for item in objects), progress)

    def fetch(item: StoredObject) -> OutputFile:
        digest = store.download(paths.join(uri, item.path), into / _inside(item.path))
        count.add(item.size)
        return OutputFile(path=item.path, sha256=digest, bytes=item.size)

    return _each(fetch, objects)


def upload_folder(store: Store, folder: Path, uri: str, *, progress: Progress | None = None) -> list[OutputFile]:
    """Store every file below a folder; paths of the result are relative to it, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    count = _Counter(sum(path.stat().st_size for path in files), progress)

    def send(path: Path) -> OutputFile:
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        digest = store.upload(path, paths.join(uri, name))
        count.add(size)
        return OutputFile(path=name, sha256=digest, bytes=size)

    return _each(send, files)


def matching(objects: Iterable[StoredObject], only: Iterable[str]) -> list[StoredObject]:
    """Return the objects whose file name (not folder) matches one of the patterns."""
    patterns = tuple(only)
    return [item for item in objects if any(fnmatch(PurePosixPath(item.path).name, p) for p in patterns)]


def _each(work: Callable[[Item], OutputFile], items: list[Item]) -> list[OutputFile]:
    with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="folder") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _inside(name: str) -> Path:
    """Return the name as a path that stays inside the folder: object keys may hold anything."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise TrainerError(ExitCode.MODEL_INVALID, f"An object is named {name!r}, which leads out of its folder.")
    return Path(path)


class _Counter:
    """Adds up bytes from several threads."""

    def __init__(self, total: int, report: Progress | None) -> None:
        self._total, self._report = total, report
        self._done, self._lock = 0, threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self._done += size
            if self._report:
                self._report(self._done, self._total)
