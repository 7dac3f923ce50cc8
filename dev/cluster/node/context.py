"""What the containers of one pod have in common, as handed to each of them."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

from dev.cluster.node.client import Manifest
from dev.cluster.node.events import Recorder
from dev.cluster.node.faults import Faults
from dev.cluster.node.images import Images
from dev.cluster.node.objects import Objects
from dev.cluster.node.podman import Podman
from dev.cluster.node.status import Stop
from dev.cluster.node.volumes import Volumes


@dataclass(frozen=True, slots=True)
class Machine:
    """What all pods of this machine share."""

    images: Images | Podman
    keep: list[str]
    hide: list[str]
    service_environment: dict[str, str]  # how a pod finds the API server

    @property
    def podman(self) -> Podman | None:
        """What runs containers in place of our own sandbox, if it does."""
        return self.images if isinstance(self.images, Podman) else None


@dataclass(slots=True)
class PodContext:
    """One pod as its containers see it."""

    pod: Manifest
    folder: Path
    hostname: str
    machine: Machine
    faults: Faults
    objects: Objects
    volumes: Volumes
    recorder: Recorder
    pause: int = 0  # process id of the sandbox
    stop: Stop | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    _kill_at: float = 0.0

    def changed(self) -> None:
        """Say that there is something new to tell the control plane."""
        self.news.set()

    def request_stop(self, stop: Stop) -> None:
        """End the pod; a later request can only shorten the grace of the first."""
        kill_at = time.monotonic() + stop.grace
        if self.stop is None:
            self.stop, self._kill_at = stop, kill_at
        self._kill_at = min(self._kill_at, kill_at)
        self.stopping.set()
        self.changed()

    def grace_is_over(self) -> bool:
        """Whether what still runs is to be killed."""
        return self.stop is not None and time.monotonic() >= self._kill_at

    async def pause_for(self, seconds: float) -> bool:
        """Wait; say whether the pod is being ended, in which case the wait is cut short."""
        try:
            await asyncio.wait_for(self.stopping.wait(), timeout=seconds)
        except TimeoutError:
            return False
        return True
