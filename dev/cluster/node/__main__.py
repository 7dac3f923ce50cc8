"""`python -m dev.cluster.node CONFIG`: serve all nodes of one cluster until told to end."""

import asyncio
import logging
import ssl
import sys
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from dev.cluster.node.addresses import LOOPBACK, Addresses, reached
from dev.cluster.node.agent import Agent
from dev.cluster.node.client import Client
from dev.cluster.node.config import Config
from dev.cluster.node.context import Machine
from dev.cluster.node.faults import Faults
from dev.cluster.node.forward import forward
from dev.cluster.node.hosts import Hosts
from dev.cluster.node.images import Images
from dev.cluster.node.podman import Podman
from dev.cluster.node.process import Pause, SandboxError
from dev.cluster.node.server import Server
from dev.cluster.node.worker import Host

ROOT = Path(__file__).parents[3]


async def serve(config: Config) -> None:
    """Run all nodes."""
    await _try_sandbox(config)
    tls = ssl.create_default_context(cafile=config.ca_file)
    connector = aiohttp.TCPConnector(ssl=tls, limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        addresses = Addresses()
        api_server = await _api_server(config, addresses)
        hosts = Hosts(Client(session, server=config.server, token=config.proxy_token), api_server=api_server)
        agents = _agents(session, config, hosts=hosts, addresses=addresses)
        await Server(agents, config).start()
        async with asyncio.TaskGroup() as group:
            group.create_task(hosts.run())
            for agent in agents:
                group.create_task(agent.run())


async def _try_sandbox(config: Config) -> None:
    # Better no node than one on which every pod hangs.
    folder = Path(config.run_dir) / "pods"
    folder.mkdir(exist_ok=True)
    try:
        await (await Pause.start("trial", sized={}, folder=folder)).stop()
    except SandboxError as error:
        print(f"this machine does not let its users make namespaces, which pods need:\n{error}", file=sys.stderr)
        sys.exit(1)


async def _api_server(config: Config, addresses: Addresses) -> str:
    """Return the address of kubernetes.default.svc: one of its own where its port can be had."""
    if not config.podman:
        return LOOPBACK
    address = reached(addresses.take())
    await forward(address, 443, to=urlsplit(config.server).port or 443)
    return address


def _agents(session: aiohttp.ClientSession, config: Config, *, hosts: Hosts, addresses: Addresses) -> list[Agent]:
    machine = _machine(config)
    return [
        Agent(
            Host(
                name=name,
                client=Client(session, server=config.server, token=token),
                machine=machine,
                faults=Faults(),
                hosts=hosts,
                addresses=addresses,
                folder=Path(config.run_dir) / "pods",
            ),
            config,
        )
        for name, token in config.tokens.items()
    ]


def _machine(config: Config) -> Machine:
    port = str(urlsplit(config.server).port)
    return Machine(
        images=_images(config),
        keep=[sys.prefix, sys.base_prefix, str(ROOT)],
        hide=[config.run_dir],
        service_environment={
            "KUBERNETES_SERVICE_HOST": LOOPBACK,
            "KUBERNETES_SERVICE_PORT": port,
            "KUBERNETES_SERVICE_PORT_HTTPS": port,
        },
    )


def _images(config: Config) -> Images | Podman:
    if config.podman:
        return Podman.find(Path(config.run_dir))
    return Images(config.images, allowed=config.allowed_images)


def main() -> None:
    """Serve until killed; the pods die with us, for the whole cluster is going."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(serve(Config.read(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
