"""The control plane: etcd, API server, controller manager and scheduler on loopback.

Each start draws free ports, random tokens and a new CA and begins with an empty etcd, so
that clusters side by side know nothing of each other and no state outlives a run.
"""

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from dev.cluster.access import Api, Credentials
from dev.cluster.certs import Authority, KeyPair
from dev.cluster.parts import Part, StartError, plain_environment
from dev.cluster.ports import free_ports, is_listened_on

READY_TIMEOUT = 60.0
ATTEMPTS = 3
TAKEN = "address already in use"
# Components and the user each one is; the groups that RBAC's own bindings do not name.
IDENTITIES = {
    "admin": "admin",
    "controller-manager": "system:kube-controller-manager",
    "scheduler": "system:kube-scheduler",
    "kube-proxy": "system:kube-proxy",
}
GROUPS = {"admin": "system:masters"}


class ControlPlane:
    """The four server processes of Kubernetes, for a fixed list of nodes."""

    def __init__(self, run_dir: Path, *, binaries: Path, nodes: list[str]) -> None:
        self.directory = run_dir / "control-plane"
        self.binaries = binaries
        self.nodes = nodes
        self.server = ""
        self._tokens: dict[str, str] = {}
        self._parts: list[Part] = []

    def start(self) -> None:
        """Start all four and wait until the API server is ready and accounts are made."""
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
        """End all four, last started first; etcd's data are disposable, so patience is short."""
        while self._parts:
            self._parts.pop().stop(patience=2.0)

    def credentials(self, name: str) -> Credentials:
        """Return how a component, or a node by its name, gets in."""
        return Credentials(self.server, self.authority.certificate, self._tokens[name])

    @property
    def parts(self) -> Sequence[Part]:
        """The processes that run."""
        return self._parts

    def _start_once(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True, mode=0o700)
        etcd, peer, secure, manager, scheduler = free_ports(5)
        self.server = f"https://127.0.0.1:{secure}"
        self.authority = Authority(self.directory / "pki")
        self.kubelet_serving = self.authority.serving("kubelet", addresses=("127.0.0.1",))
        self._write_tokens()
        keys = self.authority.key_pair("service-accounts")
        self._start_etcd(etcd, peer=peer)
        self._start_api_server(secure, etcd=etcd, keys=keys)
        self._start_followers(manager, scheduler=scheduler, keys=keys)

    def _start_etcd(self, port: int, *, peer: int) -> None:
        client_url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
        part = self._part(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={client_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--unsafe-no-fsync",  # the data are thrown away: no need to wait for the disk
        )
        # The API server waits for etcd by itself; starting both at once saves half a second.
        part.start()

    def _start_api_server(self, port: int, *, etcd: int, keys: KeyPair) -> None:
        serving = self.authority.serving("kube-apiserver", addresses=("127.0.0.1", "10.96.0.1"))
        kubelet = self.authority.client("kubelet-client", user="kube-apiserver", group="system:masters")
        part = self._part(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            *("--bind-address=127.0.0.1", f"--secure-port={port}", "--advertise-address=127.0.0.1"),
            # Without a reconciler nothing tries to put a loopback address into an EndpointSlice.
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.authority.certificate}",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            *("--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"),
            f"--service-account-key-file={keys.certificate}",
            f"--service-account-signing-key-file={keys.key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--allow-privileged=true",
            f"--kubelet-client-certificate={kubelet.certificate}",
            f"--kubelet-client-key={kubelet.key}",
            f"--kubelet-certificate-authority={self.authority.certificate}",
            # Else `kubectl logs` asks DNS for the node's name.
            "--kubelet-preferred-address-types=InternalIP",
            "--profiling=false",
        )
        part.start()
        self._wait_for_api_server(part)

    def _wait_for_api_server(self, part: Part) -> None:
        admin, etcd = Api(self.credentials("admin")), self._parts[0]

        def ready() -> bool:
            if not etcd.is_alive():
                raise etcd.failure("ended while it was starting")
            return admin.get("/readyz") is not None

        part.wait_ready(ready, timeout=READY_TIMEOUT)

    def _start_followers(self, manager_port: int, *, scheduler: int, keys: KeyPair) -> None:
        manager = self._part(
            "kube-controller-manager",
            f"--kubeconfig={self._kubeconfig('controller-manager')}",
            *("--bind-address=127.0.0.1", f"--secure-port={manager_port}", "--leader-elect=false"),
            f"--service-account-private-key-file={keys.key}",
            f"--root-ca-file={self.authority.certificate}",
            *("--use-service-account-credentials=true", "--controllers=*"),
            # The default of 20 a second makes its own start take four seconds longer.
            *("--kube-api-qps=200", "--kube-api-burst=400"),
            # A lost node shows after 16 s instead of 50: tests wait for it.
            *("--node-monitor-period=2s", "--node-monitor-grace-period=16s"),
        )
        planner = self._part(
            "kube-scheduler",
            f"--kubeconfig={self._kubeconfig('scheduler')}",
            *("--bind-address=127.0.0.1", f"--secure-port={scheduler}", "--leader-elect=false"),
        )
        for part in (manager, planner):
            part.start()
        admin = Api(self.credentials("admin"))
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        manager.wait_ready(lambda: admin.get(account) is not None, timeout=READY_TIMEOUT)
        planner.wait_ready(lambda: is_listened_on(scheduler), timeout=READY_TIMEOUT)

    def _part(self, name: str, *flags: str) -> Part:
        log = self.directory / f"{name}.log"
        environment = plain_environment(HOME=str(self.directory))
        part = Part(name, [str(self.binaries / name), *flags], log=log, env=environment)
        self._parts.append(part)
        return part

    def _kubeconfig(self, name: str) -> Path:
        path = self.directory / f"{name}.kubeconfig"
        return self.credentials(name).write_kubeconfig(path, user=IDENTITIES[name])

    def _write_tokens(self) -> None:
        users = IDENTITIES | {node: f"system:node:{node}" for node in self.nodes}
        groups = GROUPS | dict.fromkeys(self.nodes, "system:nodes")
        self._tokens = {name: secrets.token_urlsafe(32) for name in users}
        lines = [f'{self._tokens[name]},{user},{name},"{groups.get(name, "")}"' for name, user in users.items()]
        path = self.directory / "tokens.csv"
        path.touch(mode=0o600)
        path.write_text("\n".join(lines) + "\n")
