"""Events about pods: where a volume that cannot be mounted shows, and nowhere else."""

import contextlib
import secrets

from dev.cluster.node.client import FAILURES, Client, Manifest
from dev.cluster.node.status import now


class Recorder:
    """Warnings about one pod; each is told once."""

    def __init__(self, client: Client, pod: Manifest, *, node: str) -> None:
        self._client = client
        self._pod = pod["metadata"]
        self._node = node
        self._told: set[tuple[str, str]] = set()

    async def warn(self, reason: str, message: str) -> None:
        """Record a warning; failing to is no reason to fail."""
        if (reason, message) in self._told:
            return
        self._told.add((reason, message))
        path = f"/api/v1/namespaces/{self._pod['namespace']}/events"
        with contextlib.suppress(*FAILURES):
            await self._client.post(path, self._event(reason, message))

    def _event(self, reason: str, message: str) -> Manifest:
        name, namespace, uid = (self._pod[key] for key in ("name", "namespace", "uid"))
        subject = {"apiVersion": "v1", "kind": "Pod", "name": name, "namespace": namespace, "uid": uid}
        return {
            "metadata": {"name": f"{name}.{secrets.token_hex(8)}", "namespace": namespace},
            "involvedObject": subject,
            "type": "Warning",
            "reason": reason,
            "message": message[:1024],
            "source": {"component": "kubelet", "host": self._node},
            "reportingComponent": "kubelet",
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "count": 1,
        }
