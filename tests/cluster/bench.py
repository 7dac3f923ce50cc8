"""What the cluster's tests share: short manifests, waiting, and a look at processes."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from dev.cluster import LocalCluster

T = TypeVar("T")
Manifest = dict[str, Any]
TIMEOUT = 40.0


def eventually(ask: Callable[[], T | Literal[False] | None], *, timeout: float = TIMEOUT) -> T:
    """Ask until the answer is true; fail with the last answer."""
    deadline = time.monotonic() + timeout
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"still {answer!r} after {timeout:.0f} s"
        time.sleep(0.05)
    return answer


def container(command: list[str] | str, *, name: str = "main", image: str = "trainer:1", **more: Any) -> Manifest:
    """A container; a string is a shell script."""
    words = ["sh", "-c", command] if isinstance(command, str) else command
    return {"name": name, "image": image, "command": words, **more}


def mounted(volume: str, path: str, **more: Any) -> Manifest:
    """What to add to a container that mounts one volume."""
    return {"volumeMounts": [{"name": volume, "mountPath": path, **more}]}


def pod(name: str, *containers: Manifest, metadata: Manifest | None = None, **spec: Any) -> Manifest:
    """A pod that is not restarted and dies quickly."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **(metadata or {})},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2, "containers": list(containers), **spec},
    }


def job(name: str, *containers: Manifest, template: Manifest | None = None, **spec: Any) -> Manifest:
    """A Job that is not retried."""
    inner = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2, "containers": list(containers)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": {**inner, **(template or {})}}, **spec},
    }


def condition(found: Manifest, kind: str) -> Manifest:
    """One condition of a pod or Job, empty if it is not there."""
    conditions = found.get("status", {}).get("conditions", [])
    return next((item for item in conditions if item["type"] == kind), {})


def is_true(found: Manifest, kind: str) -> bool:
    """Whether a condition is True."""
    return condition(found, kind).get("status") == "True"


@dataclass(frozen=True)
class Bench:
    """One namespace of the session's cluster."""

    cluster: LocalCluster
    namespace: str

    def path(self, kind: str, name: str = "") -> str:
        """The API path of an object or a list."""
        group = "/apis/batch/v1" if kind == "jobs" else "/api/v1"
        if kind == "endpointslices":
            group = "/apis/discovery.k8s.io/v1"
        return f"{group}/namespaces/{self.namespace}/{kind}{'/' + name if name else ''}"

    def create(self, kind: str, manifest: Manifest) -> Manifest:
        """Create an object."""
        created: Manifest = self.cluster.api.post(self.path(kind), manifest)
        return created

    def get(self, kind: str, name: str) -> Manifest:
        """Read an object; empty if it is not there."""
        return self.cluster.api.get(self.path(kind, name)) or {}

    def delete(self, kind: str, name: str, **options: Any) -> None:
        """Delete an object."""
        self.cluster.api.request("DELETE", self.path(kind, name), options or None)

    def pods_of(self, job_name: str) -> list[Manifest]:
        """The pods of a Job."""
        found = self.cluster.api.get(f"{self.path('pods')}?labelSelector=job-name%3D{job_name}")
        items: list[Manifest] = found["items"]
        return items

    def run(self, manifest: Manifest) -> Manifest:
        """Create a pod and wait until it has ended."""
        name = self.create("pods", manifest)["metadata"]["name"]
        return self.until(name, lambda found: found["status"].get("phase") in ("Succeeded", "Failed"))

    def output(self, command: list[str] | str, **spec: Any) -> str:
        """Run a command in a pod of its own and return what it said."""
        more = spec.pop("container", {})
        ended = self.run(pod(f"out-{time.monotonic_ns()}", container(command, **more), **spec))
        said = self.logs(ended["metadata"]["name"])
        assert ended["status"]["phase"] == "Succeeded", said
        return said

    def logs(self, name: str, *flags: str) -> str:
        """What a pod said."""
        return self.cluster.kubectl("logs", f"--namespace={self.namespace}", name, *flags)

    def until(self, name: str, holds: Callable[[Manifest], Any], *, timeout: float = TIMEOUT) -> Manifest:
        """Wait until something holds for a pod, and return it as it was then."""
        found: Manifest = {}

        def ask() -> bool:
            nonlocal found
            found = self.get("pods", name)
            return bool(found and holds(found))

        try:
            eventually(ask, timeout=timeout)
        except AssertionError as error:
            raise AssertionError(f"{name} is {found.get('status', 'gone')}") from error
        return found


def is_running(found: Manifest) -> bool:
    """Whether a pod runs and is ready."""
    return is_true(found, "Ready")


def state(found: Manifest, index: int = 0) -> Manifest:
    """The state of a container."""
    statuses = found["status"].get("containerStatuses") or [{"state": {}}]
    known: Manifest = statuses[index]["state"]
    return known


def waiting_for(found: Manifest, index: int = 0) -> str:
    """Why a container waits; empty if it does not."""
    return str(state(found, index).get("waiting", {}).get("reason", ""))


def processes_that_mention(text: str | Path) -> list[str]:
    """The command lines of processes with this text in command line or environment."""
    mention = str(text).encode()
    return [line for pid in Path("/proc").glob("[0-9]*") if (line := _mentions(pid, mention))]


def _mentions(process: Path, text: bytes) -> str:
    try:
        line = (process / "cmdline").read_bytes()
        found = text in line or text in (process / "environ").read_bytes()
    except OSError:
        return ""
    return f"{process.name} {line.replace(bytes(1), b' ').decode()}" if found and line else ""


@contextmanager
def watched(bench: Bench, kind: str, file: Path) -> Iterator[None]:
    """Write all that happens to objects of a kind into a file, as JSON texts one after another."""
    cluster = bench.cluster
    command = [str(cluster.binaries / "kubectl"), f"--kubeconfig={cluster.kubeconfig}", "get", kind, "--watch"]
    flags = [f"--namespace={bench.namespace}", "--output=json", "--show-managed-fields"]
    # A file and not a pipe, which would be full and then stop the watch.
    with file.open("w") as out, subprocess.Popen([*command, *flags], stdout=out) as process:
        try:
            yield
        finally:
            process.terminate()
