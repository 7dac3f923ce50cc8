"""The life of one pod on this node, from being bound to being gone.

`run` reads as that life: volumes and sandbox, init containers one after another, then the
containers, the last status, and on deletion the delete that lets the object go. Whatever
ends a pod early (a delete, its deadline, the node under pressure) is a `Stop` that all
of these steps look out for.
"""

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.node.addresses import Addresses, reached
from dev.cluster.node.client import FAILURES, Client, Manifest
from dev.cluster.node.container import Container
from dev.cluster.node.context import Machine, PodContext
from dev.cluster.node.events import Recorder
from dev.cluster.node.faults import Faults
from dev.cluster.node.hosts import Hosts, Subject
from dev.cluster.node.objects import MissingObjectError, Objects
from dev.cluster.node.process import Pause, SandboxError
from dev.cluster.node.status import LOOPBACK_NODE, PodView, Stop, now, settle
from dev.cluster.node.teller import Teller
from dev.cluster.node.volumes import Volumes

RETRY = 1.0
REFRESH = 30.0  # how often volumes are brought up to date
DEFAULT_GRACE = 30


@dataclass(frozen=True, slots=True)
class Host:
    """What a pod needs from the node that it runs on."""

    name: str
    client: Client
    machine: Machine
    faults: Faults
    hosts: Hosts
    addresses: Addresses
    folder: Path


class PodWorker:
    """One pod."""

    def __init__(self, pod: Manifest, host: Host) -> None:
        metadata, spec = pod["metadata"], pod["spec"]
        self._host = host
        self._address = host.addresses.take()
        self._pause: Pause | None = None
        self._deleted = asyncio.Event()
        self._gone = False
        folder = host.folder / metadata["uid"]
        objects = Objects(host.client, metadata["namespace"])
        self.context = PodContext(
            pod=pod,
            folder=folder,
            hostname=(spec.get("hostname") or metadata["name"])[:63].rstrip("-."),
            machine=host.machine,
            faults=host.faults,
            objects=objects,
            volumes=Volumes(objects, folder / "volumes"),
            recorder=Recorder(host.client, pod, node=host.name),
        )
        self.init = [Container(item, self.context, is_init=True) for item in spec.get("initContainers", [])]
        self.main = [Container(item, self.context, is_init=False) for item in spec["containers"]]
        self._view = PodView(
            pod,
            init=[container.view for container in self.init],
            main=[container.view for container in self.main],
            started=pod.get("status", {}).get("startTime") or now(),
            address=self._address,
        )
        self._teller = Teller(host.client, self._view, news=self.context.news)
        self.update(pod)

    @property
    def is_reachable(self) -> bool:
        """Whether the node is there, as the rest of the cluster sees it."""
        return self._host.client.online.is_set()

    @property
    def containers(self) -> list[Container]:
        """All containers."""
        return [*self.init, *self.main]

    def update(self, pod: Manifest) -> None:
        """Take note of how the pod is now."""
        # Inside, addresses are told as they work, not as the API shows them; but the operator, which only an image has
        # run in a pod here, publishes its own for others.
        address = self._address if self._host.machine.podman else reached(self._address)
        inside = {"podIP": address, "hostIP": LOOPBACK_NODE}
        self.context.pod = {**pod, "status": {**pod.get("status", {}), **inside}}
        if "deletionTimestamp" in pod["metadata"]:
            self._deleted.set()
            self.stop(Stop(grace=pod["metadata"].get("deletionGracePeriodSeconds", 0)))

    def vanished(self) -> None:
        """The object is gone: end at once, there is nobody to tell."""
        self._gone = True
        self._deleted.set()
        self.stop(Stop(grace=0))

    def stop(self, stop: Stop) -> None:
        """End the pod early."""
        self.context.request_stop(stop)
        self._view.stop = self.context.stop

    async def run(self) -> None:
        """Live through the pod's life."""
        telling = asyncio.create_task(self._teller.run())
        try:
            if self.context.pod["status"].get("phase") not in ("Succeeded", "Failed"):
                await self._live()
                self._teller.finish()
                await telling
            await self._deleted.wait()
            if not self._gone:
                await self._teller.delete()
        except Exception as error:  # a fault of ours: say so where people look for reasons
            await self.context.recorder.warn("ProcessNodeError", repr(error))
            raise
        finally:
            telling.cancel()
            await self._tear_down()

    def grace(self) -> int:
        """How long the pod asks for between SIGTERM and SIGKILL."""
        return int(self.context.pod["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE))

    async def _live(self) -> None:
        self.context.changed()
        helpers = [asyncio.create_task(helper) for helper in (self._deadline(), self._refresh())]
        try:
            if await self._is_prepared() and await self._has_initialized():
                await asyncio.gather(*(container.run() for container in self.main))
        finally:
            for helper in helpers:
                helper.cancel()
        await self._end_sandbox()
        settle(self._view)

    async def _is_prepared(self) -> bool:
        while not self.context.stopping.is_set():
            try:
                await self.context.volumes.fill(self.context.pod)
                await self._make_sandbox()
            except MissingObjectError as error:
                await self.context.recorder.warn("FailedMount", f"MountVolume.SetUp failed: {error}")
            except (*FAILURES, OSError, SandboxError) as error:
                await self.context.recorder.warn("FailedCreatePodSandBox", str(error))
            else:
                return True
            await self.context.pause_for(RETRY)
        return False

    async def _make_sandbox(self) -> None:
        self.context.folder.mkdir(parents=True, exist_ok=True)
        spec, metadata = self.context.pod["spec"], self.context.pod["metadata"]
        subject = Subject(
            metadata["namespace"],
            self.context.hostname,
            spec.get("subdomain", ""),
            self._address,
            spec.get("hostAliases", []),
        )
        self._host.hosts.add(self.context.folder / "hosts", subject)
        sized, folder = self.context.volumes.sized, self.context.folder
        self._pause = await Pause.start(self.context.hostname, sized=sized, folder=folder)
        self.context.pause = self._pause.process.pid
        self._view.sandboxed = True
        self.context.changed()

    async def _has_initialized(self) -> bool:
        for container in self.init:
            await container.run()
            if not container.view.succeeded:
                return False
        return not self.context.stopping.is_set()

    async def _deadline(self) -> None:
        seconds = self.context.pod["spec"].get("activeDeadlineSeconds")
        if seconds is not None:
            await asyncio.sleep(seconds)
            message = "Pod was active on the node longer than the specified deadline"
            self.stop(Stop(grace=self.grace(), reason="DeadlineExceeded", message=message))

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH)
            try:
                await self.context.volumes.fill(self.context.pod)
            except (*FAILURES, MissingObjectError) as error:
                await self.context.recorder.warn("FailedMount", str(error))

    async def _end_sandbox(self) -> None:
        if self._pause is not None:
            await self._pause.stop()
            self._pause = None

    async def _tear_down(self) -> None:
        await self._end_sandbox()
        self._host.hosts.remove(self.context.folder / "hosts")
        self._host.addresses.give_back(self._address)
        await asyncio.to_thread(shutil.rmtree, self.context.folder, ignore_errors=True)
