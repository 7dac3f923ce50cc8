"""The process node as a part of the cluster, and the handles by which tests make it fail."""

import os
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dev.cluster.access import Api, Credentials
from dev.cluster.controlplane import TAKEN, ControlPlane
from dev.cluster.node.config import Config
from dev.cluster.node.images import Image
from dev.cluster.node.podman import Podman
from dev.cluster.parts import Part, StartError, plain_environment
from dev.cluster.ports import free_ports

ROOT = Path(__file__).parents[2]
READY_TIMEOUT = 60.0
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class NodeShape:
    """What the nodes are like: all the same."""

    gpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, Image] = field(default_factory=dict)
    allowed_images: Sequence[str] = ("*",)
    podman: bool = False


class Nodes:
    """One process that serves all nodes."""

    def __init__(self, run_dir: Path, *, control_plane: ControlPlane, shape: NodeShape) -> None:
        self.part: Part | None = None
        self._run_dir = run_dir
        self._control_plane = control_plane
        self._shape = shape
        self._control = Credentials("", control_plane.authority.certificate, secrets.token_urlsafe(32))

    def start(self) -> None:
        """Start the process and wait until every node is ready."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._start_once()
            except StartError as error:
                self.stop()
                if attempt == ATTEMPTS or TAKEN not in str(error):
                    raise
            else:
                return

    def stop(self) -> None:
        """End the process, and with it all pods."""
        if self.part is not None:
            self.part.stop(patience=2.0)
            self._remove_pods()
        self.part = None

    def fault(self, path: str, **options: Any) -> None:
        """Make something go wrong."""
        Api(self._control).post(f"/control/{path}", options)

    def _start_once(self) -> None:
        (port,) = free_ports(1)
        self._control = Credentials(f"https://127.0.0.1:{port}", self._control.ca_file, self._control.token)
        config = self._config(port).write(self._run_dir / "node.json")
        command = [sys.executable, "-m", "dev.cluster.node", str(config)]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = plain_environment(PYTHONPATH=os.pathsep.join(paths))
        log = self._run_dir / "node.log"
        log.unlink(missing_ok=True)
        self._remove_pods()
        self.part = Part("process node", command, log=log, env=environment)
        self.part.start()
        admin = Api(self._control_plane.credentials("admin"))
        self.part.wait_ready(lambda: self._are_ready(admin), timeout=READY_TIMEOUT)

    def _remove_pods(self) -> None:
        if self._shape.podman:
            Podman.find(self._run_dir).remove_all()
        shutil.rmtree(self._run_dir / "pods", ignore_errors=True)

    def _config(self, port: int) -> Config:
        control_plane, shape = self._control_plane, self._shape
        return Config(
            server=control_plane.server,
            ca_file=str(control_plane.authority.certificate),
            run_dir=str(self._run_dir),
            port=port,
            certificate=str(control_plane.kubelet_serving.certificate),
            key=str(control_plane.kubelet_serving.key),
            control_token=self._control.token,
            proxy_token=control_plane.credentials("kube-proxy").token,
            tokens={name: control_plane.credentials(name).token for name in control_plane.nodes},
            gpus=shape.gpus,
            labels=shape.labels,
            images=shape.images,
            allowed_images=shape.allowed_images,
            podman=shape.podman,
        )

    def _are_ready(self, admin: Api) -> bool:
        listed = admin.get("/api/v1/nodes") or {"items": []}
        ready = [node["metadata"]["name"] for node in listed["items"] if _is_schedulable(node)]
        return set(ready) == set(self._control_plane.nodes)


@dataclass(frozen=True, slots=True)
class NodeControl:
    """One node, for tests that need it to fail."""

    name: str
    nodes: Nodes

    def lose(self, *, freeze: bool = False) -> None:
        """Cut the node off; its pods go on, or with `freeze` stand still as well."""
        self.nodes.fault(f"{self.name}/lose", freeze=freeze)

    def recover(self) -> None:
        """Bring the node back, with whatever still runs on it."""
        self.nodes.fault(f"{self.name}/recover")

    def slow_down(self, seconds: float) -> None:
        """Let every container start that much later; 0 undoes it."""
        self.nodes.fault(f"{self.name}/slow", seconds=seconds)

    def kill_for_memory(self, namespace: str, pod: str, **container: str) -> None:
        """Kill a container (the first, or `container=`) as if memory had run out."""
        self._pod_fault("kill-for-memory", namespace, pod, **container)

    def hang(self, namespace: str, pod: str, **container: str) -> None:
        """Stop a container's processes without ending them."""
        self._pod_fault("hang", namespace, pod, **container)

    def resume(self, namespace: str, pod: str, **container: str) -> None:
        """Let a container that hangs go on."""
        self._pod_fault("resume", namespace, pod, **container)

    def evict_for_pressure(self, namespace: str, pod: str) -> None:
        """Let the node itself evict a pod, as when it runs out of memory or disk."""
        self._pod_fault("evict", namespace, pod)

    def _pod_fault(self, fault: str, namespace: str, pod: str, **options: str) -> None:
        self.nodes.fault(f"{self.name}/pods/{namespace}/{pod}/{fault}", **options)


def _is_schedulable(node: dict[str, Any]) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    ready = any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
    return ready and not node["spec"].get("taints")
