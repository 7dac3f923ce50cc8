"""The node's HTTPS server: the part of a kubelet's API behind `kubectl logs`, and the control of faults.

Both are on one port. The kubelet's paths want the API server's client certificate, the
control paths the token that only those who started the cluster have.
"""

import json
import secrets
import signal
import ssl
from collections.abc import Sequence

from aiohttp import web

from dev.cluster.node.agent import Agent
from dev.cluster.node.client import Manifest
from dev.cluster.node.config import Config
from dev.cluster.node.container import Container
from dev.cluster.node.logs import read_log
from dev.cluster.node.status import Stop
from dev.cluster.node.worker import PodWorker

PRESSURE = "The node was low on resource: memory."


class Server:
    """The server of all nodes of this machine."""

    def __init__(self, agents: Sequence[Agent], config: Config) -> None:
        self._agents = {agent.host.name: agent for agent in agents}
        self._config = config

    async def start(self) -> web.AppRunner:
        """Listen on the configured port."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/containerLogs/{namespace}/{pod}/{container}", self._logs),
                web.post("/control/{node}/{fault}", self._node_fault),
                web.post("/control/{node}/pods/{namespace}/{pod}/{fault}", self._pod_fault),
            ]
        )
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._config.port, ssl_context=self._tls()).start()
        return runner

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._config.ca_file)
        context.load_cert_chain(self._config.certificate, self._config.key)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        if not (request.transport and request.transport.get_extra_info("peercert")):
            raise web.HTTPUnauthorized
        path = request.match_info
        worker = self._worker(path["namespace"], path["pod"])
        if not worker.is_reachable:
            raise web.HTTPServiceUnavailable
        container = _container(worker, path["container"])
        log = container.log(previous=request.query.get("previous") == "true")
        if not log.exists():
            raise web.HTTPBadRequest(text=f'container "{path["container"]}" has no such log')
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        tail = request.query.get("tailLines")
        async for chunk in read_log(
            log,
            tail=int(tail) if tail else None,
            follow=request.query.get("follow") == "true",
            running=lambda: container.view.running,
        ):
            await response.write(chunk)
        return response

    async def _node_fault(self, request: web.Request) -> web.Response:
        agent, options = self._agent(request), await self._options(request)
        match request.match_info["fault"]:
            case "lose":
                agent.lose(freeze=bool(options.get("freeze")))
            case "recover":
                agent.recover()
            case "slow":
                agent.host.faults.start_delay = float(options["seconds"])
            case _:
                raise web.HTTPNotFound
        return web.json_response({})

    async def _pod_fault(self, request: web.Request) -> web.Response:
        options, path = await self._options(request), request.match_info
        worker = self._worker(path["namespace"], path["pod"])
        container = _container(worker, options["container"]) if "container" in options else worker.main[0]
        match path["fault"]:
            case "kill-for-memory":
                container.kill_for_memory()
            case "hang" | "resume" if container.process is not None:
                container.process.send_all(signal.SIGSTOP if path["fault"] == "hang" else signal.SIGCONT)
            case "evict":
                stop = Stop(grace=worker.grace(), reason="Evicted", message=PRESSURE, is_disruption=True)
                worker.stop(stop)
            case _:
                raise web.HTTPNotFound
        return web.json_response({})

    def _agent(self, request: web.Request) -> Agent:
        agent = self._agents.get(request.match_info["node"])
        if agent is None:
            raise web.HTTPNotFound
        return agent

    async def _options(self, request: web.Request) -> Manifest:
        given = request.headers.get("Authorization", "")
        if not secrets.compare_digest(given, f"Bearer {self._config.control_token}"):
            raise web.HTTPUnauthorized
        options: Manifest = json.loads(await request.text() or "{}")
        return options

    def _worker(self, namespace: str, pod: str) -> PodWorker:
        found = (agent.worker(namespace, pod) for agent in self._agents.values())
        worker = next(filter(None, found), None)
        if worker is None:
            raise web.HTTPNotFound(text=f'pod "{pod}" is not on this node')
        return worker


def _container(worker: PodWorker, name: str) -> Container:
    for container in worker.containers:
        if container.view.name == name:
            return container
    raise web.HTTPNotFound(text=f'container "{name}" is not in this pod')
