"""Names of Services and pods, as a hosts file in each pod: there is no DNS and no kube-proxy.

The files are kept up to date from Services and EndpointSlices while pods run. A Service's
port is therefore its target port, and of several endpoints the first one listed answers.
"""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from dev.cluster.node.addresses import LOOPBACK, reached
from dev.cluster.node.client import Client, Manifest
from dev.cluster.node.follow import GONE, follow

SERVICE_OF_SLICE = "kubernetes.io/service-name"
DOMAIN = "svc.cluster.local"


@dataclass(frozen=True, slots=True)
class Subject:
    """The pod that a hosts file is for."""

    namespace: str
    hostname: str
    subdomain: str
    address: str  # as the API shows it
    aliases: list[Manifest] = field(default_factory=list)


class Hosts:
    """All hosts files of this machine's pods."""

    def __init__(self, client: Client, *, api_server: str = LOOPBACK) -> None:
        """`api_server` is where kubernetes.default.svc is reached."""
        self._client, self._api_server = client, api_server
        self._slices: dict[str, Manifest] = {}
        self._files: dict[Path, Subject] = {}

    async def run(self) -> None:
        """Follow EndpointSlices for ever and rewrite the files when one changes."""
        async for kind, found in follow(self._client, "/apis/discovery.k8s.io/v1/endpointslices"):
            uid = found["metadata"]["uid"]
            if kind == GONE:
                self._slices.pop(uid, None)
            else:
                self._slices[uid] = found
            await asyncio.to_thread(self._rewrite)

    def add(self, path: Path, subject: Subject) -> None:
        """Write a pod's file, and keep it up to date from now on."""
        self._files[path] = subject
        self._write(path, subject)

    def remove(self, path: Path) -> None:
        """Forget a pod's file."""
        self._files.pop(path, None)

    def _rewrite(self) -> None:
        for path, subject in list(self._files.items()):
            self._write(path, subject)

    def _write(self, path: Path, subject: Subject) -> None:
        text = hosts_file(subject, list(self._slices.values()), api_server=self._api_server)
        # In place: containers have this very file mounted, not its name.
        if not path.exists() or path.read_text() != text:
            with path.open("r+" if path.exists() else "w") as file:
                file.write(text)
                file.truncate()


def hosts_file(subject: Subject, slices: list[Manifest], *, api_server: str = LOOPBACK) -> str:
    """Return the text of a pod's hosts file."""
    lines = [f"{LOOPBACK} localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines.append(f"{reached(subject.address)} {' '.join(_own_names(subject))}")
    lines.append(f"{api_server} kubernetes.default.svc kubernetes.default.{DOMAIN} kubernetes.default kubernetes")
    lines += [f"{alias['ip']} {' '.join(alias.get('hostnames', []))}" for alias in subject.aliases]
    for found in slices:
        lines += _slice_lines(found, namespace=subject.namespace)
    return "\n".join(lines) + "\n"


def _own_names(subject: Subject) -> list[str]:
    if not subject.subdomain:
        return [subject.hostname]
    full = f"{subject.hostname}.{subject.subdomain}.{subject.namespace}.{DOMAIN}"
    return [full, subject.hostname]


def _slice_lines(found: Manifest, *, namespace: str) -> list[str]:
    service = found["metadata"].get("labels", {}).get(SERVICE_OF_SLICE)
    if not service:
        return []
    names = _service_names(service, found["metadata"]["namespace"], seen_from=namespace)
    lines = []
    for endpoint in found.get("endpoints") or []:
        if (endpoint.get("conditions") or {}).get("ready") is False:
            continue
        pod = endpoint.get("hostname")
        every = [f"{pod}.{name}" for name in names] + names if pod else names
        lines.append(f"{reached(endpoint['addresses'][0])} {' '.join(every)}")
    return lines


def _service_names(service: str, namespace: str, *, seen_from: str) -> list[str]:
    names = [f"{service}.{namespace}.{DOMAIN}", f"{service}.{namespace}.svc", f"{service}.{namespace}"]
    return [*names, service] if namespace == seen_from else names
