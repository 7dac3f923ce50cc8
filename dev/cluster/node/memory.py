"""Memory limits: a container over its limit is killed, as the kernel would.

Watched from outside a few times a second, because an ordinary user may not make cgroups on
most machines. Memory that forked processes share counts once. What a burst takes between
two looks is not prevented, so every container also volunteers to be the first that the
kernel itself kills.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from dev.cluster.node.process import tree

LOOK_EVERY = 0.25
KIB = 1024


async def watch_memory(pid: int, *, limit: int, over: Callable[[], None]) -> None:
    """Look at a container's processes until they exceed the limit, then call `over`."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        if await asyncio.to_thread(_exceeds, pid, limit):
            return over()


def _exceeds(pid: int, limit: int) -> bool:
    processes = tree(pid)
    # The quick sum counts shared pages several times; only near the limit is the slow one worth it.
    if sum(_resident(process) for process in processes) <= limit:
        return False
    return sum(_proportional(process) for process in processes) > limit


def _resident(pid: int) -> int:
    return _field(Path(f"/proc/{pid}/status"), "VmRSS:")


def _proportional(pid: int) -> int:
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def _field(file: Path, name: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * KIB for line in lines if line.startswith(name))
