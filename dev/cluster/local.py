"""One cluster on this machine, as a context manager: what test fixtures and `up` both use.

    with LocalCluster(run_dir, nodes=2, gpus=4) as cluster:
        cluster.kubectl("apply", "-f", "-", input=manifest)

Control plane, process node and S3 server are children of this process. All they write
lies under `run_dir`, and none outlives this process, however it ends. One cluster a
folder: a lock file sees to that.
"""

import fcntl
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

from dev.cluster import build
from dev.cluster.access import Api, Credentials
from dev.cluster.controlplane import ControlPlane
from dev.cluster.node.addresses import HOST
from dev.cluster.node.images import Image
from dev.cluster.nodes import NodeControl, Nodes, NodeShape
from dev.cluster.parts import Part, StartError, plain_environment
from dev.cluster.s3 import S3Server

Backend = Literal["process", "podman", "none"]


class KubectlError(RuntimeError):
    """kubectl refused; the message is what it said."""


class LocalCluster:
    """Control plane, nodes and S3 server, started together and ended together."""

    def __init__(
        self,
        run_dir: Path | str,
        *,
        nodes: int = 1,
        gpus: int = 0,
        backend: Backend = "process",
        with_s3: bool = True,
        labels: Mapping[str, str] | None = None,
        images: Mapping[str, Image] | None = None,
        allowed_images: Sequence[str] = ("*",),
    ) -> None:
        self.run_dir = Path(run_dir).absolute()
        self.node_names = [f"node-{number}" for number in range(nodes)] if backend != "none" else []
        self.shape = NodeShape(gpus, labels or {}, images or {}, allowed_images, podman=backend == "podman")
        self.s3 = S3Server(self.run_dir)
        self.kubeconfig = self.run_dir / "kubeconfig"
        self.control_plane: ControlPlane | None = None
        self.nodes: Nodes | None = None
        self._with_s3 = with_s3
        self._lock: IO[str] | None = None

    def start(self) -> None:
        """Start everything, or nothing: a part that fails takes the others down with it."""
        self.take_folder()
        try:
            self.binaries = build.assets()
            self._start_parts()
        except BaseException:
            self.stop()
            raise

    def take_folder(self) -> None:
        """Reserve the run folder; `start` does so itself if nobody has."""
        if self._lock is not None:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (self.run_dir / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise StartError(f"another cluster runs in {self.run_dir}") from error
        self._lock = lock

    def stop(self) -> None:
        """End everything; the folder stays, with its logs."""
        if self.nodes is not None:
            self.nodes.stop()
        if self.control_plane is not None:
            self.control_plane.stop()
        self.s3.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def server(self) -> str:
        """The API server's address."""
        return self._admin.server

    @property
    def api(self) -> Api:
        """A plain client with all rights."""
        return Api(self._admin)

    @property
    def ca_file(self) -> Path:
        """The certificate that vouches for the API server."""
        return self._admin.ca_file

    @property
    def reachable_host(self) -> str:
        """An address that EndpointSlices take and under which pods reach servers of this host."""
        return HOST

    @property
    def parts(self) -> Sequence[Part]:
        """All processes that should run."""
        control_plane = self.control_plane.parts if self.control_plane else []
        node = [self.nodes.part] if self.nodes and self.nodes.part else []
        return [*control_plane, *node, *self.s3.parts]

    def node(self, name: str) -> NodeControl:
        """Return the handle by which a node can be made to fail."""
        if self.nodes is None or name not in self.node_names:
            raise StartError(f"there is no node {name}")
        return NodeControl(name, self.nodes)

    def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002
        """Run kubectl as the administrator and return what it printed."""
        command = [str(self.binaries / "kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]
        env = plain_environment(KUBECACHEDIR=str(self.run_dir / "kubectl-cache"))
        done = subprocess.run(command, input=input, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def evict(self, namespace: str, pod: str) -> None:
        """Evict a pod through the API, as draining a node does."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        self.api.post(f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction", eviction)

    def kubeconfig_for_service_account(
        self, namespace: str, name: str, *, hours: int = 8, server: str | None = None
    ) -> Path:
        """Write a kubeconfig with a token of this service account, and with its rights only.

        `server` is another way to the API server than its own address: a proxy in front of it.
        """
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": hours * 3600},
        }
        answer = self.api.post(path, request)
        credentials = Credentials(server or self.server, self.ca_file, answer["status"]["token"])
        target = self.run_dir / "kubeconfigs" / f"{namespace}.{name}{'.by-proxy' if server else ''}"
        return credentials.write_kubeconfig(target, user=name, namespace=namespace)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _admin(self) -> Credentials:
        if self.control_plane is None:
            raise StartError("the cluster has not been started")
        return self.control_plane.credentials("admin")

    def _start_parts(self) -> None:
        self.control_plane = ControlPlane(self.run_dir, binaries=self.binaries, nodes=self.node_names)
        with ThreadPoolExecutor(max_workers=1) as beside:
            s3 = beside.submit(self.s3.start) if self._with_s3 else None
            try:
                self.control_plane.start()
                self._admin.write_kubeconfig(self.kubeconfig, user="admin")
                if self.node_names:
                    self.nodes = Nodes(self.run_dir, control_plane=self.control_plane, shape=self.shape)
                    self.nodes.start()
            except BaseException:
                self.s3.stop()  # so that the other thread need not wait until it is ready
                raise
            if s3 is not None:
                s3.result()
