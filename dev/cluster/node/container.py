"""The life of one container: pulled, configured, started, watched, ended, perhaps again.

It tells what happens through its `view`, from which the pod's status is made, and it ends
when the container is over for good or the pod is being ended.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Coroutine
from pathlib import Path

from dev.cluster.node.client import FAILURES, Manifest
from dev.cluster.node.context import PodContext
from dev.cluster.node.env import environment, expanded
from dev.cluster.node.fields import quantity
from dev.cluster.node.images import Image
from dev.cluster.node.memory import watch_memory
from dev.cluster.node.messages import termination_message
from dev.cluster.node.mounts import capabilities, mounts
from dev.cluster.node.objects import MissingObjectError
from dev.cluster.node.podman import run_arguments
from dev.cluster.node.probes import watch_readiness
from dev.cluster.node.process import ContainerProcess, SandboxError
from dev.cluster.node.sandbox.spec import ContainerSpec
from dev.cluster.node.status import CREATING, WAITING_FOR_INIT, ContainerView, now

RETRY = 1.0  # seconds until a missing image or Secret is looked for again
STABLE = 600.0  # a container that ran this long starts anew with the shortest back-off
FIRST_BACK_OFF = 10.0
LONGEST_BACK_OFF = 300.0
LOOK_EVERY = 0.1
KILLED = 128 + signal.SIGKILL
CANNOT_START = 128
log = logging.getLogger(__name__)


class Container:
    """One container of a pod."""

    def __init__(self, spec: Manifest, context: PodContext, *, is_init: bool) -> None:
        self.spec = spec
        self.process: ContainerProcess | None = None
        reason = WAITING_FOR_INIT if context.pod["spec"].get("initContainers") else CREATING
        self.view = ContainerView(spec["name"], spec["image"], {"waiting": {"reason": reason}})
        self._context = context
        self._is_init = is_init
        self._out_of_memory = False
        self._back_off = 0.0
        self._started = 0.0
        self._folder: Path = context.folder / "containers" / spec["name"]

    def log(self, *, previous: bool = False) -> Path:
        """Where the output of this run, or of the one before, is kept."""
        return self._folder / f"{self.view.restarts - previous}.log"

    def kill_for_memory(self) -> None:
        """End the container as the kernel does when memory has run out."""
        self._out_of_memory = True
        if self.process is not None:
            self.process.send(signal.SIGKILL)

    async def run(self) -> None:
        """Run the container until it is over."""
        (self._folder / "root").mkdir(parents=True, exist_ok=True)
        while not self._context.stopping.is_set():
            image = await self._pull()
            spec = await self._configure(image) if image else None
            if spec is None:
                return
            await self._run_once(spec)
            if not self._is_to_restart() or await self._waits_to_restart():
                return

    async def _pull(self) -> Image | None:
        name = self.spec["image"]
        reasons = ["ErrImagePull", "ImagePullBackOff"]
        while (image := self._context.machine.images.pull(name)) is None:
            await self._wait_for(reasons[0], f'image "{name}" is not to be had', event="Failed")
            reasons.reverse()
            if await self._context.pause_for(RETRY):
                return None
        return image

    async def _configure(self, image: Image) -> ContainerSpec | None:
        while True:
            try:
                return await self._container_spec(image)
            except MissingObjectError as error:
                await self._wait_for("CreateContainerConfigError", str(error), event="Failed")
            except FAILURES as error:
                log.info("%s: %s; trying again", self._folder, error)
            if await self._context.pause_for(RETRY):
                return None

    async def _container_spec(self, image: Image) -> ContainerSpec:
        context, machine = self._context, self._context.machine
        base = {**image.environment, "HOSTNAME": context.hostname, **machine.service_environment}
        values = await environment(context.pod, self.spec, base=base, objects=context.objects)
        command = self.spec.get("command") or list(image.entrypoint)
        command = [expanded(word, values) for word in [*command, *self.spec.get("args", [])]]
        security = self.spec.get("securityContext") or {}
        return ContainerSpec(
            parent=os.getpid(),
            pod=context.pause,
            status=-1,
            staging=str(self._folder / "root"),
            command=command,
            environment=values,
            working_dir=self.spec.get("workingDir") or image.working_dir,
            mounts=mounts(
                self.spec,
                places=context.volumes.places,
                environment=values,
                hosts=context.folder / "hosts",
                message=self._message_file(),
            ),
            keep=machine.keep,
            hide=machine.hide,
            read_only_root=bool(security.get("readOnlyRootFilesystem")),
            root_bytes=int(quantity(self._limit("ephemeral-storage") or 0)),
            capabilities=capabilities(self.spec),
        )

    async def _run_once(self, spec: ContainerSpec) -> None:
        if await self._context.pause_for(self._context.faults.start_delay):
            return
        self._out_of_memory = False
        self._started, started = time.monotonic(), now()
        try:
            if not spec.command:
                raise SandboxError("no command specified")
            self.process = await self._start(spec)
        except SandboxError as error:
            self._end(CANNOT_START, started=started, reason="StartError", message=str(error))
            return
        self._show_running(started)
        exit_code = await self._watched(self.process)
        self.process = None
        if self._context.machine.podman and exit_code == KILLED and self._limit("memory"):
            # podman 4.3 does not tell (State.OOMKilled is false under cgroups v1), and nobody else has killed it.
            self._out_of_memory |= not self._context.stopping.is_set()
        self._end(exit_code, started=started)

    async def _start(self, spec: ContainerSpec) -> ContainerProcess:
        context, podman = self._context, self._context.machine.podman
        if podman is None:
            return await ContainerProcess.start(spec, path=self._folder / "container.json", log=self.log())
        pidfile = self._folder / f"{self.view.restarts}.pid"
        arguments = run_arguments(
            self.spec, context.pod, spec, hostname=context.hostname, cluster=podman.cluster, pidfile=pidfile
        )
        return await podman.start(arguments, values=spec.environment, pidfile=pidfile, log=self.log())

    async def _watched(self, process: ContainerProcess) -> int:
        watchers = [asyncio.create_task(watcher) for watcher in self._watchers(process)]
        try:
            return await self._until_ended(process)
        finally:
            for watcher in watchers:
                watcher.cancel()

    def _watchers(self, process: ContainerProcess) -> list[Coroutine[None, None, None]]:
        watchers = []
        if (limit := self._limit("memory")) and not self._context.machine.podman:
            watchers.append(watch_memory(process.pid, limit=int(quantity(limit)), over=self.kill_for_memory))
        if probe := self.spec.get("readinessProbe"):
            watchers.append(
                watch_readiness(
                    probe, container=self.spec, pid=process.pid, scratch=self._folder, tell=self._tell_ready
                )
            )
        return watchers

    async def _until_ended(self, process: ContainerProcess) -> int:
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._context.stopping.wait())
        await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ended.done():
            process.send(signal.SIGTERM)
        while not ended.done():
            if self._context.grace_is_over():
                process.send(signal.SIGKILL)
            await asyncio.wait([ended], timeout=LOOK_EVERY)
        return ended.result()

    def _end(self, exit_code: int, *, started: str, reason: str = "", message: str = "") -> None:
        policy = self.spec.get("terminationMessagePolicy", "File")
        said = termination_message(self._message_file(), log=self.log(), policy=policy, exit_code=exit_code)
        if not reason:
            reason = "Completed" if exit_code == 0 else "Error"
        if self._out_of_memory and exit_code == KILLED:
            reason = "OOMKilled"
        state = {"exitCode": exit_code, "reason": reason, "startedAt": started, "finishedAt": now()}
        state["containerID"] = self.view.container_id
        if message or said:
            state["message"] = message or said
        self.view.state = {"terminated": state}
        self.view.ready = self._is_init and exit_code == 0
        self._context.changed()

    def _is_to_restart(self) -> bool:
        policy = self._context.pod["spec"].get("restartPolicy", "Always")
        if self._context.stopping.is_set() or policy == "Never" or (self._is_init and self.view.succeeded):
            return False
        return policy == "Always" or not self.view.succeeded

    async def _waits_to_restart(self) -> bool:
        self.view.last_state = self.view.state
        if time.monotonic() - self._started > STABLE:
            self._back_off = 0.0
        if self._back_off:  # the first restart comes at once
            message = f"back-off {self._back_off:.0f}s restarting failed container={self.view.name}"
            await self._wait_for("CrashLoopBackOff", message, event="BackOff")
        if await self._context.pause_for(self._back_off):
            self.view.state = self.view.last_state
            return True
        self._back_off = min(max(2 * self._back_off, FIRST_BACK_OFF), LONGEST_BACK_OFF)
        self.view.restarts += 1
        return False

    async def _wait_for(self, reason: str, message: str, *, event: str) -> None:
        waiting = {"waiting": {"reason": reason, "message": message}}
        if self.view.state != waiting:
            self.view.state = waiting
            self._context.changed()
        await self._context.recorder.warn(event, message)

    def _show_running(self, started: str) -> None:
        uid = self._context.pod["metadata"]["uid"]
        backend = "podman" if self._context.machine.podman else "process"
        self.view.container_id = f"{backend}://{uid}/{self.view.name}/{self.view.restarts}"
        self.view.state = {"running": {"startedAt": started}}
        self.view.ready = not self._is_init and not self.spec.get("readinessProbe")
        self._context.changed()

    def _tell_ready(self, ready: bool) -> None:
        self.view.ready = ready
        self._context.changed()

    def _limit(self, resource: str) -> str | None:
        limit = self.spec.get("resources", {}).get("limits", {}).get(resource)
        return None if limit is None else str(limit)

    def _message_file(self) -> Path:
        file = self._folder / f"{self.view.restarts}.message"
        file.touch()
        file.chmod(0o666)  # it is the container's user who writes there
        return file
