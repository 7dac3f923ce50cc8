"""What the operator reads from its environment: set by the manifests and the chart, by hand on a laptop."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from finetune_operator.api.constants import GROUP, VERSION

_N = TypeVar("_N", int, float)


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's configuration. Every field is an environment variable of the same name with FINETUNE_."""

    namespace: str
    """Namespace of the operator itself: its TLS Secret lies there (POD_NAMESPACE)."""
    pod_name: str
    """Name of the operator's pod, by which it holds the Lease (POD_NAME); made up where there is none."""
    pod_uid: str
    """The pod's uid, which owns the status server's EndpointSlice (POD_UID)."""
    pod_ip: str
    """The pod's address, to which the leader has progress posted (POD_IP); not published when empty."""
    trainer_image: str | None
    """Image of the trainer where neither job nor profile names one."""
    watch_namespace: str | None
    """Only this namespace is served; all when absent."""
    status_bind: str
    """host:port that the status server listens on."""
    status_url: str
    """How pods reach the status server: https://host:port."""
    liveness_url: str
    """Where /healthz is served."""
    metrics_bind: str
    """host:port of /metrics; not served when empty."""
    workers: int
    """Jobs that are reconciled at the same time."""
    resync_seconds: float
    """Time between two full LISTs, which also find deletions that watches lost."""
    progress_seconds: float
    """Least time between two status writes that only carry progress."""
    require_profile: bool
    """Whether a job needs an applicable profile as soon as there is any."""
    log_format: str
    """json or text."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings. Raises ValueError that names the variable."""
        namespace = env.get("POD_NAMESPACE", "finetune-system")
        return cls(
            namespace=namespace,
            # The kubelet starts a container of a pod only once its predecessor is dead, so a name is used by one.
            pod_name=env.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
            pod_uid=env.get("POD_UID", ""),
            pod_ip=env.get("POD_IP", ""),
            trainer_image=env.get("FINETUNE_TRAINER_IMAGE") or None,
            watch_namespace=env.get("FINETUNE_WATCH_NAMESPACE") or None,
            status_bind=env.get("FINETUNE_STATUS_BIND", "0.0.0.0:8443"),
            status_url=env.get("FINETUNE_STATUS_URL", f"https://finetune-operator.{namespace}.svc:8443").rstrip("/"),
            liveness_url=env.get("FINETUNE_LIVENESS_URL", "http://0.0.0.0:8080/healthz"),
            metrics_bind=env.get("FINETUNE_METRICS_BIND", "0.0.0.0:9090"),
            workers=_number(env, "FINETUNE_WORKERS", "16", int),
            resync_seconds=_number(env, "FINETUNE_RESYNC_SECONDS", "600", float),
            progress_seconds=_number(env, "FINETUNE_PROGRESS_SECONDS", "5", float),
            require_profile=_switch(env, "FINETUNE_REQUIRE_PROFILE", "true"),
            log_format=env.get("FINETUNE_LOG_FORMAT", "json"),
        )


def _number(env: Mapping[str, str], name: str, default: str, kind: type[_N]) -> _N:
    text = env.get(name, default)
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r} is not a number") from error


def _switch(env: Mapping[str, str], name: str, default: str) -> bool:
    text = env.get(name, default)
    if text not in ("true", "false"):
        raise ValueError(f"{name}={text!r} is neither true nor false")
    return text == "true"


def progress_path(namespace: str, name: str) -> str:
    """Return the path below the status server's URL that a job's pods post to."""
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/finetunejobs/{name}/status"


def parse_bind(bind: str, *, variable: str) -> tuple[str, int]:
    """Split `host:port`, `[::]:port`. Raises ValueError that names the variable."""
    host, _, port = bind.rpartition(":")
    if not port.isdecimal() or not host:
        raise ValueError(f"{variable}={bind!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)
