"""The folders of fetched models that jobs share: used by many at once, filled by one, removed when room is needed.

A process that uses a folder holds a shared lock beside it until the process ends, however it ends; who makes room
takes the same lock alone, without waiting, and so never removes what somebody uses. The folder that was used longest
ago goes first. flock(2) works on local disks and on NFS from version 4.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune_trainer.logs import log

MARKER = ".finetune.json"
"""Written last into a complete folder; its time is when the folder was used last."""
PARTIAL = ".partial"
_IN_USE = ".in-use"
_GIB = 1 << 30
_held: dict[Path, int] = {}
"""Open locks of this process: they end with it."""


def hold(folder: Path) -> None:
    """Keep a folder, which need not be there yet, from being removed while this process lives."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder not in _held:
        _held[folder] = _opened(folder)
        fcntl.flock(_held[folder], fcntl.LOCK_SH)
    with suppress(FileNotFoundError):
        os.utime(folder / MARKER)


def make_room(root: Path, *, needed: int, limit: int) -> None:
    """Remove unused folders until `needed` more bytes stay within `limit` bytes, or nothing unused is left."""
    sizes = {folder: _size(folder) for folder in root.iterdir() if folder.is_dir()}
    excess = sum(sizes.values()) + needed - limit
    for folder in sorted(sizes, key=_last_used):
        if excess <= 0:
            return
        if _removed(folder):
            log.info("model cache: %s removed to make room (%.2f GiB)", folder.name, sizes[folder] / _GIB)
            excess -= sizes[folder]
    if excess > 0:
        log.warning("model cache: %.2f GiB above its size, all of it in use", excess / _GIB)


def _removed(folder: Path) -> bool:
    with _alone(folder) as unused:
        if unused:
            # First of all the marker: a removal that is cut short leaves no folder that looks whole.
            (folder / MARKER).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        return unused


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Take the lock of a folder that nobody uses; tell whether that is so."""
    lock = _opened(folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(lock)


def _opened(folder: Path) -> int:
    name = folder.name.removesuffix(PARTIAL)
    return os.open(folder.with_name(f"{name}{_IN_USE}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _last_used(folder: Path) -> float:
    """Return when a folder was used last; what is not whole counts from its own last change."""
    for path in (folder / MARKER, folder):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def _size(folder: Path) -> int:
    return sum(_bytes(path) for path in folder.rglob("*"))


def _bytes(path: Path) -> int:
    """Return a file's size; one that another process has just removed has none."""
    with suppress(OSError):
        return path.stat().st_size if path.is_file() else 0
    return 0
