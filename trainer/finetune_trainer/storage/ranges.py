"""Downloads that go on where they stopped: ranges fetched in parallel, written and hashed in order.

The part file's name carries the object's etag, so a changed object never continues an old part. S3 and the hub share
this; each brings its own way to fetch one range.
"""

from __future__ import annotations

import glob
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from finetune_trainer.errors import AlreadyExistsError, TrainerError
from finetune_trainer.preemption import PREEMPTION
from finetune_trainer.storage.digest import hash_file
from finetune_trainer.storage.failures import unreachable

RANGE = 8 << 20
AHEAD = 8
"""Ranges in flight: at most AHEAD x RANGE bytes in memory a file."""
ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Remote:
    """An object to be downloaded."""

    uri: str
    size: int
    etag: str
    sha256: str | None
    """Where it is known beforehand; checked at the end."""
    endpoint: str
    fetch: Callable[[int, int], bytes]
    """Returns the bytes from first to last, both included."""


def download_ranges(remote: Remote, path: Path) -> str:
    """Download into `path`, which appears only when it is complete; return its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_file(path, remote.etag)
    digest = hash_file(part)
    with part.open("ab") as file:
        for piece in _in_order(remote, start=file.tell()):
            PREEMPTION.check()  # what is there is kept: the next attempt goes on from it
            file.write(piece)
            digest.update(piece)
        file.flush()
    _check(remote, part, found=digest.hexdigest())
    part.replace(path)
    return digest.hexdigest()


def _part_file(path: Path, etag: str) -> Path:
    """Return this content's part file, and throw away those of earlier contents."""
    part = path.with_name(f"{path.name}.{re.sub(r'[^A-Za-z0-9-]', '', etag)[:80]}.part")
    for other in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        if other != part:
            other.unlink()
    part.touch()
    return part


def _in_order(remote: Remote, *, start: int) -> Iterator[bytes]:
    """Yield the ranges from `start` on, AHEAD of them in flight."""
    spans = iter([(first, min(first + RANGE, remote.size) - 1) for first in range(start, remote.size, RANGE)])
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="download") as pool:
        waiting: deque[Future[bytes]] = deque(pool.submit(_patiently, remote, *span) for span in islice(spans, AHEAD))
        try:
            while waiting:
                piece = waiting.popleft().result()
                waiting.extend(pool.submit(_patiently, remote, *span) for span in islice(spans, 1))
                yield piece
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _patiently(remote: Remote, first: int, last: int) -> bytes:
    """Fetch one range; connections that break in its middle are nobody's fault the first times."""
    why = "it answered with fewer bytes than asked for"
    for attempt in range(ATTEMPTS):
        try:
            if len(piece := remote.fetch(first, last)) == last - first + 1:
                return piece
        except (TrainerError, AlreadyExistsError):
            raise
        except Exception as error:
            if not _is_broken_connection(error):
                raise
            why = type(error).__name__
        time.sleep(2**attempt / 4)
    raise unreachable(remote.uri, endpoint=remote.endpoint, why=why)


def _is_broken_connection(error: Exception) -> bool:
    """Whether the stream broke after the answer had begun, which no client retries by itself."""
    return type(error).__name__ in _BROKEN or isinstance(error, ConnectionError | TimeoutError)


# botocore's names, urllib3's below it, and httpx's below huggingface_hub.
_BROKEN = frozenset(
    {
        "ResponseStreamingError",
        "IncompleteReadError",
        "ReadTimeoutError",
        "ProtocolError",
        "IncompleteRead",
        "RemoteProtocolError",
        "ReadError",
        "ReadTimeout",
    }
)


def _check(remote: Remote, part: Path, *, found: str) -> None:
    """Refuse a download of the wrong size or content; the part is thrown away, so that the next try starts anew."""
    if part.stat().st_size == remote.size and found == (remote.sha256 or found):
        return
    part.unlink()
    why = "what arrived is not what was stored (size or sha256 differ)"
    raise unreachable(remote.uri, endpoint=remote.endpoint, why=why)
