"""A real cluster on this machine: control plane, process node and S3 server.

Everything the tests and the demo need and nobody wants to install: etcd and
Kubernetes built from one Go module, a node written in Python that runs pods as
local processes, and SeaweedFS. `python -m dev.cluster up` starts all of it; the
tests use the same parts as context managers.
"""

from dev.cluster.daemon import Shape, down, up
from dev.cluster.local import KubectlError, LocalCluster
from dev.cluster.parts import StartError
from dev.cluster.s3 import S3Server

__all__ = ["KubectlError", "LocalCluster", "S3Server", "Shape", "StartError", "down", "up"]
