"""The backend `podman` keeps what a pod's spec says: told by the container itself."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from dev.cluster.local import LocalCluster
from dev.images.__main__ import image_name

pytestmark = pytest.mark.images
LOOK = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
try:
    open("/opt/mark", "w")
except OSError as error:
    refused = error.strerror
open("/tmp/mark", "w")
wanted = ("CapEff", "NoNewPrivs", "Seccomp")
open("/dev/termination-log", "w").write(json.dumps({
    "uid": os.getuid(), "groups": sorted(os.getgroups()), "refused": refused, "hostname": os.uname().nodename,
    "secret": os.environ["TOKEN"], **{name: status[name].strip() for name in wanted}}))
"""
RESTRICTED: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
TEN_SECONDS_OF_MEMORY = "kept = [bytearray(8 << 20) for _ in range(64)]"


def run(cluster: LocalCluster, name: str, code: str, **container: Any) -> dict[str, Any]:
    """Run Python in the trainer's image under the pods' restrictions; return how the container ended."""
    main = {
        "name": "main",
        "image": image_name("trainer"),
        "command": ["python", "-c", code],
        "env": [{"name": "TOKEN", "value": "a,b=c"}],
        "securityContext": RESTRICTED,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        **container,
    }
    security = {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 20002,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    spec = {
        "restartPolicy": "Never",
        "securityContext": security,
        "containers": [main],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    cluster.kubectl("create", "-f", "-", input=json.dumps(pod))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = json.loads(cluster.kubectl("get", "pod", name, "-o", "json"))["status"]
        if found.get("phase") in ("Succeeded", "Failed"):
            ended: dict[str, Any] = found["containerStatuses"][0]["state"]["terminated"]
            return ended
        time.sleep(0.2)
    pytest.fail(f"{name} has not ended: {found}")


def test_user_root_capabilities_and_seccomp_are_the_specs(cluster: LocalCluster) -> None:
    said = json.loads(run(cluster, "look", LOOK)["message"])
    assert said == {
        "uid": 10001,
        "groups": [10001, 20002],
        "refused": "Read-only file system",
        "hostname": "look",
        "secret": "a,b=c",
        "CapEff": "0" * 16,
        "NoNewPrivs": "1",
        "Seccomp": "2",
    }


def test_a_container_above_its_memory_limit_is_killed_by_the_kernel(cluster: LocalCluster) -> None:
    limited = {"limits": {"memory": "64Mi"}}
    ended = run(cluster, "greedy", TEN_SECONDS_OF_MEMORY, resources=limited)
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


def test_a_command_that_is_not_there_is_said(cluster: LocalCluster) -> None:
    ended = run(cluster, "lost", "", command=["no-such-program"])
    assert ended["reason"] in ("StartError", "Error")
    assert ended["exitCode"] != 0
