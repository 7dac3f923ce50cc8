"""Processes of a pod as the node sees them: the pause process, and one for each container.

Each is a Python that enters the sandbox (see `sandbox`). Killing a container's process 1
kills everything in its PID namespace, so nothing a container starts can escape.
"""

import asyncio
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from dev.cluster.node.sandbox import spec as specs

ENTRY = Path(specs.__file__).with_name("__main__.py")


class SandboxError(Exception):
    """The sandbox could not be made; the message is what it said."""


@dataclass(slots=True)
class Pause:
    """The process that holds a pod's shared namespaces."""

    process: asyncio.subprocess.Process

    @classmethod
    async def start(cls, hostname: str, *, sized: dict[str, int], folder: Path) -> Self:
        """Make the namespaces and the sized emptyDirs."""
        spec = specs.write(specs.PodSpec(os.getpid(), hostname, sized), folder / "pod.json")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *_command("pod", spec), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        if process.stdout is None or not await process.stdout.readline():
            _, said = await process.communicate()
            raise SandboxError(said.decode(errors="replace").strip())
        return cls(process)

    async def stop(self) -> None:
        """Let the namespaces go."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()


@dataclass(slots=True)
class ContainerProcess:
    """A container's process 1, and our own process that waits for it."""

    outer: asyncio.subprocess.Process
    pid: int
    _handle: int  # a pidfd: the id of a process that has ended may be somebody else's

    @classmethod
    async def start(cls, spec: specs.ContainerSpec, *, path: Path, log: Path) -> Self:
        """Start the container; raises `SandboxError` when its command cannot be run."""
        reading, writing = os.pipe()
        try:
            written = specs.write(replace(spec, status=writing), path)
            with log.open("ab") as file:
                outer = await asyncio.create_subprocess_exec(
                    *_command("container", written),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    pass_fds=[writing],
                    start_new_session=True,
                )
        finally:
            os.close(writing)
        said = await asyncio.to_thread(_read_all, reading)
        pid = next((int(line[4:]) for line in said if line.startswith("pid ")), 0)
        wrong = [line.removeprefix("error ") for line in said if not line.startswith("pid ")]
        if wrong or not pid:
            await outer.wait()
            raise SandboxError("\n".join(wrong) or f"the sandbox ended with {outer.returncode}")
        return cls(outer, pid, open_handle(pid))

    def send(self, number: signal.Signals) -> None:
        """Send process 1 a signal; SIGKILL ends all that the container has started."""
        if self._handle >= 0:
            try:
                signal.pidfd_send_signal(self._handle, number)
            except ProcessLookupError:
                return

    def send_all(self, number: signal.Signals) -> None:
        """Send every process of the container a signal."""
        for pid in tree(self.pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    async def wait(self) -> int:
        """Wait for the end and return the exit code."""
        code = await self.outer.wait()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        return code if code >= 0 else 128 - code


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for each in found:
        for file in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                found += map(int, file.read_text().split())
            except OSError:
                continue
    return found


def _command(kind: str, spec: Path) -> list[str]:
    return [sys.executable, "-I", "-S", str(ENTRY), kind, str(spec)]


def _read_all(reading: int) -> list[str]:
    with os.fdopen(reading) as file:
        return file.read().splitlines()


def open_handle(pid: int) -> int:
    """Return a pidfd of a process; -1 if it has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:  # so short was its life
        return -1
