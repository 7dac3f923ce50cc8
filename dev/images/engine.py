"""podman or docker, whichever is there, and what podman must be told on machines that are containers themselves."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

# podman asks for these unless told otherwise; a machine whose hard limits are lower refuses every container.
_PODMAN_NOFILE = 1048576
_PODMAN_NPROC = 32768

_PACKAGES = {
    "podman": "podman",
    "buildah": "buildah",
    "runc": "runc",
    "netavark": "netavark",
    "debootstrap": "debootstrap",
}


class ImageError(RuntimeError):
    """Something that the images need is missing or failed; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A container engine and the environment to call it with."""

    program: str
    env: dict[str, str]

    def run(self, *arguments: str, capture: bool = False) -> str:
        """Run one of the engine's commands; what it prints is returned or shown."""
        out = subprocess.PIPE if capture else None
        done = subprocess.run([self.program, *arguments], env=self.env, stdout=out, text=True, check=False)
        if done.returncode:
            raise ImageError(f"{self.program} {' '.join(arguments[:2])} failed with exit code {done.returncode}")
        return done.stdout or ""

    def has_image(self, name: str) -> bool:
        """Say whether this machine has the image."""
        command = [self.program, "image", "inspect", name]
        return subprocess.run(command, env=self.env, capture_output=True, check=False).returncode == 0


def find_engine(run_dir: Path) -> Engine:
    """Return podman, or docker where there is none. Raises ImageError, with what to install."""
    if podman := shutil.which("podman"):
        run_dir.mkdir(parents=True, exist_ok=True)
        conf = run_dir / "containers.conf"
        conf.write_text(containers_conf())
        return Engine(podman, os.environ | {"CONTAINERS_CONF": str(conf)})
    docker = shutil.which("docker")
    if docker and _answers(docker):
        return Engine(docker, os.environ | {"DOCKER_BUILDKIT": "1"})
    found = (
        "there is no podman here, and docker's daemon does not answer"
        if docker
        else "there is no podman or docker here"
    )
    raise ImageError(f"{found}: {install_hint('podman', 'buildah', 'runc', 'netavark', 'debootstrap')}")


def _answers(docker: str) -> bool:
    """Whether the daemon runs: the client alone builds nothing."""
    return subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0


def install_hint(*programs: str) -> str:
    """Return the command that installs what is missing of these."""
    packages = " ".join(_PACKAGES[name] for name in programs if shutil.which(name) is None)
    return f"apt-get install --no-install-recommends {packages}"


def containers_conf() -> str:
    """Return podman's configuration for this machine: nothing where its own defaults work."""
    engine = []
    if not Path("/run/systemd/system").exists():
        engine += ['cgroup_manager = "cgroupfs"', 'events_logger = "file"']
        if shutil.which("runc"):
            # Debian's crun refuses machines with both versions of cgroups mounted.
            engine.append('runtime = "runc"')
    return "\n".join(["[containers]", *_ulimits(), "[engine]", *engine, ""])


def _ulimits() -> list[str]:
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY or files >= _PODMAN_NOFILE:
        return []
    _, processes = resource.getrlimit(resource.RLIMIT_NPROC)
    processes = _PODMAN_NPROC if processes == resource.RLIM_INFINITY else min(processes, _PODMAN_NPROC)
    return [f'default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]']


def scratch(run_dir: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a folder that goes when the build ends."""
    run_dir.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=run_dir, ignore_cleanup_errors=True)
