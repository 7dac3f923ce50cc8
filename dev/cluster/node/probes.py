"""Readiness probes: over HTTP, by connecting, or by a command inside the container."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp

from dev.cluster.node.client import Manifest
from dev.cluster.node.process import ENTRY

PERIOD = 10.0
TIMEOUT = 1.0


async def watch_readiness(
    probe: Manifest, *, container: Manifest, pid: int, scratch: Path, tell: Callable[[bool], None]
) -> None:
    """Probe for ever and tell whether the container is ready, as its thresholds say."""
    await asyncio.sleep(probe.get("initialDelaySeconds", 0))
    streak, ready = 0, False
    while True:
        succeeded = await _attempt(probe, container=container, pid=pid, scratch=scratch)
        streak = streak + 1 if succeeded != ready else 0
        if streak >= probe.get("failureThreshold" if ready else "successThreshold", 3 if ready else 1):
            ready, streak = succeeded, 0
            tell(ready)
        await asyncio.sleep(probe.get("periodSeconds", PERIOD))


async def _attempt(probe: Manifest, *, container: Manifest, pid: int, scratch: Path) -> bool:
    try:
        async with asyncio.timeout(probe.get("timeoutSeconds", TIMEOUT)):
            if "exec" in probe:
                return await _run(probe["exec"]["command"], pid=pid, scratch=scratch)
            if "httpGet" in probe:
                return await _fetch(probe["httpGet"], container)
            return await _connect(_port(probe["tcpSocket"]["port"], container))
    except (TimeoutError, OSError, aiohttp.ClientError):
        return False


async def _run(command: list[str], *, pid: int, scratch: Path) -> bool:
    spec = scratch / "probe.json"
    environment = await asyncio.to_thread(_environment_of, pid)
    request = {"parent": os.getpid(), "process": pid, "command": command, "environment": environment}
    await asyncio.to_thread(spec.write_text, json.dumps(request))
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(ENTRY), "exec", str(spec), stdin=quiet, stdout=quiet, stderr=quiet
    )
    try:
        return await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()


def _environment_of(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="surrogateescape").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


async def _fetch(request: Manifest, container: Manifest) -> bool:
    scheme, host = request.get("scheme", "HTTP").lower(), request.get("host", "127.0.0.1")
    url = f"{scheme}://{host}:{_port(request['port'], container)}{request.get('path', '/')}"
    headers = {header["name"]: header["value"] for header in request.get("httpHeaders", [])}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers, ssl=False) as answer:
        return answer.ok


async def _connect(port: int) -> bool:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    return True


def _port(port: int | str, container: Manifest) -> int:
    if isinstance(port, int):
        return port
    named = {item.get("name"): item["containerPort"] for item in container.get("ports", [])}
    return int(named[port])
