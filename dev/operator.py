"""The operator as a local process, under its own ServiceAccount and the shipped RBAC: what the demo and tests run.

    with LocalCluster(run_dir) as cluster, LocalOperator(cluster) as operator:
        cluster.kubectl("apply", "-f", "examples/quickstart.yaml")

Its manifests are the shipped ones; the Deployment among them stays without pods, scaled to zero, since the operator
runs here. `kill` ends it as a crash would, `start` brings it back.
"""

from __future__ import annotations

import os
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

import yaml

from dev.cluster.local import LocalCluster
from dev.cluster.parts import Part, plain_environment
from dev.cluster.ports import free_ports

ROOT = Path(__file__).resolve().parent.parent
NAMESPACE, ACCOUNT = "finetune-system", "finetune-operator"
TRAINER_IMAGE = "finetune-trainer:dev"
_READY_SECONDS = 60.0


class LocalOperator:
    """The operator's process beside a local cluster, with the shipped manifests installed."""

    def __init__(
        self,
        cluster: LocalCluster,
        *,
        name: str = "operator",
        server: str | None = None,
        pod_ip: str = "",
        **settings: str,
    ) -> None:
        """Take a cluster, and FINETUNE_ settings by their lower-case names: `progress_seconds="0"`.

        `name` holds the Lease; `server` stands in front of the API server; posts go to `pod_ip` if there is one.
        """
        self._cluster, self.name, self._server, self._pod_ip = cluster, name, server, pod_ip
        self._settings = {f"FINETUNE_{name.upper()}": value for name, value in settings.items()}
        self._status_port, self._liveness_port, self.metrics_port = free_ports(3)
        self._part: Part | None = None
        self.log = cluster.run_dir / f"{name}.log"

    @property
    def pid(self) -> int:
        """The operator's process id."""
        return self._running.pid

    @property
    def status_url(self) -> str:
        """Where pods post their progress: they share the host's network (dev.cluster.node.addresses)."""
        return f"https://127.0.0.1:{self._status_port}"

    def install(self) -> None:
        """Apply the shipped manifests, the Deployment without pods: even for a moment they would take the Lease."""
        kubectl = self._cluster.kubectl
        manifests = kubectl("kustomize", str(ROOT / "manifests"))
        kubectl("apply", "--server-side", "-f", "-", input=_without_pods(manifests))
        kubectl("wait", "--for=condition=Established", "crd", "finetunejobs.finetuning.dev", "--timeout=30s")
        kubectl("wait", "--for=condition=Established", "crd", "finetuneprofiles.finetuning.dev", "--timeout=30s")

    def start(self) -> None:
        """Start the process and wait until its loop works."""
        config = self._cluster.kubeconfig_for_service_account(NAMESPACE, ACCOUNT, server=self._server)
        command = [sys.executable, "-m", "finetune_operator"]
        self._part = Part(self.name, command, log=self.log, env=self._environment(config))
        self._part.start()
        self._part.wait_ready(self.is_healthy, timeout=_READY_SECONDS)

    def stop(self) -> None:
        """End it as the kubelet would: SIGTERM."""
        if self._part:
            self._part.stop(patience=10)
            self._part = None

    def kill(self) -> None:
        """End it as a crash would: SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        self._running.stop()
        self._part = None

    def metrics(self) -> dict[str, float]:
        """Return what /metrics serves: values by name and labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for line in lines if line[:1] != "#" for name, value in [line.rsplit(" ", 1)]}

    def __enter__(self) -> Self:
        self.install()
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _running(self) -> Part:
        if self._part is None:
            raise RuntimeError("the operator does not run")
        return self._part

    def _environment(self, kubeconfig: Path) -> dict[str, str]:
        return plain_environment(
            KUBECONFIG=str(kubeconfig),
            POD_NAMESPACE=NAMESPACE,
            POD_NAME=self.name,
            POD_IP=self._pod_ip,
            **{
                "FINETUNE_STATUS_BIND": f"127.0.0.1:{self._status_port}",
                "FINETUNE_STATUS_URL": self.status_url,
                "FINETUNE_LIVENESS_URL": f"http://127.0.0.1:{self._liveness_port}/healthz",
                "FINETUNE_METRICS_BIND": f"127.0.0.1:{self.metrics_port}",
                "FINETUNE_TRAINER_IMAGE": TRAINER_IMAGE,
                "FINETUNE_LOG_FORMAT": "text",
                **self._settings,
            },
        )

    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._part is not None and self._part.is_alive()

    def is_healthy(self) -> bool:
        """Whether its liveness probe says so."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._liveness_port}/healthz", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False


def _without_pods(manifests: str) -> str:
    items = [item for item in yaml.safe_load_all(manifests) if item]
    for item in items:
        if item["kind"] == "Deployment":
            item["spec"]["replicas"] = 0
    return yaml.safe_dump_all(items)
