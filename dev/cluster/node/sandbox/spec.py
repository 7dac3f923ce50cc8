"""What the node tells a sandbox process: two small records, passed as JSON files."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class PodSpec:
    """The shared part of a pod: its hostname and the emptyDirs that have a size."""

    parent: int
    hostname: str
    sized: dict[str, int] = field(default_factory=dict)  # folder -> bytes

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the record that the node wrote."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder or file of the host, and where the container sees it."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One container: what to run, in which pod, and what it may see."""

    parent: int
    pod: int  # the pause process
    status: int  # file descriptor on which the start is reported
    staging: str  # an empty folder to build the root on
    command: list[str]
    environment: dict[str, str]
    working_dir: str
    mounts: list[Mount]
    keep: list[str]  # folders that must stay visible: this Python and the checkout
    hide: list[str]  # folders that must not be: the cluster's own files
    read_only_root: bool = False
    root_bytes: int = 0  # how much may be written outside volumes; 0: half of the memory
    capabilities: list[int] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the record that the node wrote."""
        kept = json.loads(path.read_text())
        kept["mounts"] = [Mount(**mount) for mount in kept["mounts"]]
        return cls(**kept)


def write(spec: PodSpec | ContainerSpec, path: Path) -> Path:
    """Write a record; it holds environments, and so secrets."""
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(spec)))
    return path
