"""Reading a container's log, as `kubectl logs` asks for it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

CHUNK = 64 << 10
LOOK_EVERY = 0.1


async def read_log(path: Path, *, tail: int | None, follow: bool, running: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yield what is there, and with `follow` what comes until the container has ended."""
    with path.open("rb") as file:
        file.seek(_start_of_tail(path, tail))
        while True:
            goes_on = follow and running()  # asked before reading: what comes last is not missed
            while chunk := file.read(CHUNK):
                yield chunk
            if not goes_on:
                return
            await asyncio.sleep(LOOK_EVERY)


def _start_of_tail(path: Path, tail: int | None) -> int:
    if tail is None:
        return 0
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    return len(content) - sum(map(len, lines[len(lines) - tail :])) if tail < len(lines) else 0
