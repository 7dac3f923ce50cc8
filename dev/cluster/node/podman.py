"""Backend `podman`: a container is one of our own images, run as its pod's spec says.

User and groups, read-only root, capabilities, seccomp, privilege escalation and the memory limit are podman's and the
kernel's doing here, where the backend `process` only plays some of them. Images are those of this machine's store:
none is ever fetched. Needs root. An emptyDir's size is not kept to.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dev.cluster.node.client import Manifest
from dev.cluster.node.fields import quantity
from dev.cluster.node.images import Image
from dev.cluster.node.process import ContainerProcess, SandboxError, open_handle
from dev.cluster.node.sandbox.spec import ContainerSpec
from dev.images.engine import containers_conf

LABEL = "finetuning.dev/cluster"
OWN = ("PATH", "CONTAINERS_CONF")
LOOK_EVERY = 0.02
SAID_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Podman:
    """podman, and the cluster whose containers it runs."""

    program: str
    env: Mapping[str, str]
    cluster: str

    @classmethod
    def find(cls, run_dir: Path) -> Self:
        """Return it for a cluster's folder. Raises SandboxError where there is none."""
        program = shutil.which("podman")
        if program is None or os.geteuid() != 0:
            raise SandboxError("the backend podman needs root, and podman with runc")
        conf = run_dir / "containers.conf"
        conf.write_text(containers_conf())
        return cls(program, os.environ | {"CONTAINERS_CONF": str(conf)}, str(run_dir))

    def pull(self, name: str) -> Image | None:
        """Return what the image brings along, if this machine has it. Its variables are podman's to set."""
        done = self._call("image", "inspect", "--format={{json .Config}}", name)
        if done.returncode:
            return None
        config = json.loads(done.stdout)
        start = [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]
        return Image(entrypoint=start, working_dir=config.get("WorkingDir") or "/")

    async def start(
        self, arguments: list[str], *, values: Mapping[str, str], pidfile: Path, log: Path
    ) -> ContainerProcess:
        """Run a container, its variables passed by name alone: values would stand in the list of processes."""
        outer = await self._run(arguments, {**values, **self._own}, log)
        pid = await _pid(pidfile, outer)
        if pid is None:
            raise SandboxError(await asyncio.to_thread(_end_of, log) or f"podman ended with {outer.returncode}")
        return ContainerProcess(outer, pid, open_handle(pid))

    async def _run(self, arguments: list[str], env: Mapping[str, str], log: Path) -> asyncio.subprocess.Process:
        quiet = asyncio.subprocess.DEVNULL
        file = await asyncio.to_thread(log.open, "ab")
        with file:
            return await asyncio.create_subprocess_exec(
                self.program, *arguments, env=env, stdin=quiet, stdout=file, stderr=file, start_new_session=True
            )

    @property
    def _own(self) -> dict[str, str]:
        """What podman itself has to have in its environment, beside the container's variables."""
        return {name: self.env[name] for name in OWN if name in self.env}

    def remove_all(self) -> None:
        """Remove what is left of this cluster: containers do not end with the node's process."""
        found = self._call("ps", "--all", "--quiet", f"--filter=label={LABEL}={self.cluster}").stdout.split()
        if found:
            self._call("rm", "--force", "--time=0", *found)

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.program, *arguments], env=self.env, capture_output=True, text=True, check=False)


async def _pid(pidfile: Path, outer: asyncio.subprocess.Process) -> int | None:
    """Wait for the container's first process; None if podman has ended without one."""
    while True:
        ended = outer.returncode is not None
        if text := await asyncio.to_thread(_end_of, pidfile):
            return int(text)
        if ended:
            return None
        await asyncio.sleep(LOOK_EVERY)


def _end_of(file: Path) -> str:
    try:
        return file.read_text(errors="replace")[-SAID_BYTES:].strip()
    except FileNotFoundError:
        return ""


def run_arguments(
    container: Manifest, pod: Manifest, spec: ContainerSpec, *, hostname: str, cluster: str, pidfile: Path
) -> list[str]:
    """Return podman's arguments for a container of a pod. Pure."""
    return [
        "run",
        "--rm",
        "--pull=never",
        "--network=host",  # as with all pods here: dev.cluster.node.addresses
        "--no-hosts",
        f"--hostname={hostname}",
        "--log-driver=none",
        f"--label={LABEL}={cluster}",
        f"--pidfile={pidfile}",
        f"--workdir={spec.working_dir}",
        *_security(container, pod),
        *_limits(container),
        *(f"--env={name}={value}" if name in OWN else f"--env={name}" for name, value in spec.environment.items()),
        *(_mount(mount.source, mount.target, read_only=mount.read_only) for mount in spec.mounts),
        f"--entrypoint={json.dumps(spec.command)}",
        container["image"],
    ]


def _security(container: Manifest, pod: Manifest) -> Iterator[str]:
    shared, own = pod["spec"].get("securityContext") or {}, container.get("securityContext") or {}
    both = {**shared, **own}
    if (user := both.get("runAsUser")) is not None:
        group = both.get("runAsGroup")
        yield f"--user={user}" if group is None else f"--user={user}:{group}"
    for group in [shared.get("fsGroup"), *(shared.get("supplementalGroups") or [])]:
        if group is not None:
            yield f"--group-add={group}"
    if own.get("readOnlyRootFilesystem"):
        yield from ("--read-only", "--read-only-tmpfs=false")
    asked = own.get("capabilities") or {}
    yield from (f"--cap-drop={name}" for name in asked.get("drop") or [])
    yield from (f"--cap-add={name}" for name in asked.get("add") or [])
    if own.get("allowPrivilegeEscalation") is False:
        yield "--security-opt=no-new-privileges"
    if (both.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
        yield "--security-opt=seccomp=unconfined"


def _limits(container: Manifest) -> Iterator[str]:
    limits = container.get("resources", {}).get("limits", {})
    if "memory" in limits:
        size = int(quantity(limits["memory"]))
        yield from (f"--memory={size}", f"--memory-swap={size}")
    if "cpu" in limits:
        yield f"--cpus={float(quantity(limits['cpu']))}"


def _mount(source: str, target: str, *, read_only: bool) -> str:
    return f"--mount=type=bind,source={source},destination={target}{',ro=true' if read_only else ''}"
