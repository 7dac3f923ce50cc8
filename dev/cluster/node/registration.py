"""A Node object and its Lease: what the scheduler sees, and the sign of life. Pure."""

import datetime
import os
import platform
from collections.abc import Mapping

from dev.cluster.node.client import Manifest
from dev.cluster.node.status import LOOPBACK_NODE, now

GPU = "nvidia.com/gpu"
MAX_PODS = 250
LEASE_SECONDS = 40
VERSION = "v1.36.4"


def node_object(name: str, *, port: int, gpus: int, labels: Mapping[str, str]) -> Manifest:
    """Return the Node as it is first registered."""
    own = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": _architecture()}
    status = node_status(name, port=port, gpus=gpus)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {**own, **labels}},
        "status": status,
    }


def node_status(name: str, *, port: int, gpus: int) -> Manifest:
    """Return what the node has and that it is well."""
    resources = _resources(gpus)
    return {
        "capacity": resources,
        "allocatable": resources,
        "addresses": [{"type": "InternalIP", "address": LOOPBACK_NODE}, {"type": "Hostname", "address": name}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "nodeInfo": _node_info(),
        "conditions": [
            _condition("Ready", "True", "KubeletReady"),
            _condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            _condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            _condition("PIDPressure", "False", "KubeletHasSufficientPID"),
        ],
    }


def lease(name: str) -> Manifest:
    """Return the Lease as it is renewed now."""
    renewed = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": renewed},
    }


def _resources(gpus: int) -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = os.statvfs("/")
    resources = {
        # Generous: what is tested is what pods ask for, not whether this machine has it.
        "cpu": str(max(64, os.cpu_count() or 1)),
        "memory": str(max(memory, 256 << 30)),
        "ephemeral-storage": str(max(disk.f_frsize * disk.f_blocks, 1 << 40)),
        "pods": str(MAX_PODS),
    }
    return resources | ({GPU: str(gpus)} if gpus else {})


def _condition(kind: str, status: str, reason: str) -> Manifest:
    return {"type": kind, "status": status, "reason": reason, "message": reason, "lastHeartbeatTime": now()}


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _node_info() -> dict[str, str]:
    return {
        "architecture": _architecture(),
        "bootID": "",
        "containerRuntimeVersion": "process://1",
        "kernelVersion": platform.release(),
        "kubeProxyVersion": "",
        "kubeletVersion": VERSION,
        "machineID": "",
        "operatingSystem": "linux",
        "osImage": "process node (this machine)",
        "systemUUID": "",
    }
