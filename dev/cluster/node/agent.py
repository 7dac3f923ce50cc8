"""One Node: registered, kept alive by its Lease, and host to the pods bound to it."""

import asyncio
import http
import logging
import signal
from contextlib import suppress

from dev.cluster.node.client import FAILURES, ApiError, Manifest
from dev.cluster.node.config import Config
from dev.cluster.node.follow import GONE, follow
from dev.cluster.node.registration import lease, node_object, node_status
from dev.cluster.node.worker import Host, PodWorker

BEAT = 4.0  # a quarter of the control plane's patience
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
log = logging.getLogger(__name__)


class Agent:
    """One Node of this machine."""

    def __init__(self, host: Host, config: Config) -> None:
        self.host = host
        self.workers: dict[str, PodWorker] = {}
        self._config = config
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Be a node for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._live())
            group.create_task(self._follow_pods())

    def worker(self, namespace: str, pod: str) -> PodWorker | None:
        """Find a pod by name."""
        for worker in self.workers.values():
            metadata = worker.context.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, pod):
                return worker
        return None

    def lose(self, *, freeze: bool) -> None:
        """Cut the line to the control plane; with `freeze` the pods stop as well, as on a hung machine."""
        self.host.client.online.clear()
        if freeze:
            self._send_all(signal.SIGSTOP)

    def recover(self) -> None:
        """Be back, with whatever ran."""
        self._send_all(signal.SIGCONT)
        self.host.client.online.set()

    def _send_all(self, number: signal.Signals) -> None:
        for worker in self.workers.values():
            for container in worker.containers:
                if container.process is not None:
                    container.process.send_all(number)

    async def _live(self) -> None:
        while True:
            try:
                await self._beat()
            except FAILURES as error:
                log.info("%s: %s", self.host.name, error)
            await asyncio.sleep(BEAT)

    async def _beat(self) -> None:
        name, client = self.host.name, self.host.client
        status = {"status": node_status(name, port=self._config.port, gpus=self._config.gpus)}
        try:
            await client.patch(f"/api/v1/nodes/{name}/status", status)
            await client.patch(f"{LEASES}/{name}", lease(name))
        except ApiError as error:
            if error.status != http.HTTPStatus.NOT_FOUND:
                raise
            await self._register()

    async def _register(self) -> None:
        name, config = self.host.name, self._config
        for path, body in (
            ("/api/v1/nodes", node_object(name, port=config.port, gpus=config.gpus, labels=config.labels)),
            (LEASES, lease(name)),
        ):
            with suppress(ApiError):  # it may be there already
                await self.host.client.post(path, body)

    async def _follow_pods(self) -> None:
        selector = f"spec.nodeName={self.host.name}"
        async for kind, pod in follow(self.host.client, "/api/v1/pods", fieldSelector=selector):
            self._take_note(kind, pod)

    def _take_note(self, kind: str, pod: Manifest) -> None:
        uid = pod["metadata"]["uid"]
        if kind == GONE:
            if worker := self.workers.pop(uid, None):
                worker.vanished()
        elif uid in self.workers:
            self.workers[uid].update(pod)
        else:
            worker = self.workers[uid] = PodWorker(pod, self.host)
            task = asyncio.create_task(worker.run(), name=pod["metadata"]["name"])
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("pod %s", task.get_name(), exc_info=error)
