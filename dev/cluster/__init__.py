"""A real cluster on this machine: control plane, process node and S3 server.

Everything the tests and the demo need and nobody wants to install: etcd and
Kubernetes built from one Go module, a node written in Python that runs pods as
local processes, and SeaweedFS. `python -m dev.cluster up` starts all of it; the
tests use the same parts as context managers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dev.cluster.daemon import Shape, down, up
    from dev.cluster.local import KubectlError, LocalCluster
    from dev.cluster.parts import StartError
    from dev.cluster.s3 import S3Server

__all__ = ["KubectlError", "LocalCluster", "S3Server", "Shape", "StartError", "down", "up"]

_HOMES = {
    "Shape": "daemon",
    "down": "daemon",
    "up": "daemon",
    "KubectlError": "local",
    "LocalCluster": "local",
    "StartError": "parts",
    "S3Server": "s3",
}


def __getattr__(name: str) -> Any:
    # Late, because the node's sandbox lives below this package, starts with every
    # container and has neither the time nor the packages for the rest.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
