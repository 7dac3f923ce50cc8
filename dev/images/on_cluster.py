"""The operator's image at work: on a local control plane, with the shipped rights, as the Deployment runs it."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path

from dev.cluster.local import LocalCluster
from dev.cluster.ports import free_ports
from dev.images.engine import Engine, ImageError

MANIFESTS = Path(__file__).parents[2] / "manifests"
NAMESPACE = "finetune-system"
START_SECONDS = 30
_KUBECONFIG = "/etc/finetune/kubeconfig"


def check_operator(engine: Engine, image: str, flags: tuple[str, ...], folder: Path) -> None:
    """Have the image's operator take up a sample job. Raises ImageError with its log's end."""
    with LocalCluster(folder / "cluster", backend="none", with_s3=False) as cluster:
        cluster.kubectl("apply", "--server-side", "-k", str(MANIFESTS))
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all")
        container, health = _start(engine, image, flags, _readable_kubeconfig(cluster, folder))
        try:
            _wait_until_alive(health)
            cluster.kubectl("apply", "--server-side", "-k", str(MANIFESTS / "samples"))
            cluster.kubectl("wait", "--for=jsonpath={.status.phase}", "ftj/support-bot", "--timeout=30s")
            print(cluster.kubectl("get", "ftj,jobs"))
        except Exception as error:
            raise ImageError(f"{error}\n{engine.run('logs', '--tail=20', container, capture=True)}") from error
        finally:
            engine.run("rm", "--force", container, capture=True)


def _readable_kubeconfig(cluster: LocalCluster, folder: Path) -> Path:
    """Return the ServiceAccount's kubeconfig as a file that uid 10001 can read in a folder that it cannot enter."""
    copy = folder / "kubeconfig"
    copy.write_text(cluster.kubeconfig_for_service_account(NAMESPACE, "finetune-operator").read_text())
    copy.chmod(0o644)
    return copy


def _start(engine: Engine, image: str, flags: tuple[str, ...], kubeconfig: Path) -> tuple[str, str]:
    status, health = free_ports(2)
    url = f"http://127.0.0.1:{health}/healthz"
    env = {
        "KUBECONFIG": _KUBECONFIG,
        "POD_NAMESPACE": NAMESPACE,
        "FINETUNE_STATUS_BIND": f"127.0.0.1:{status}",
        "FINETUNE_LIVENESS_URL": url,
        "FINETUNE_METRICS_BIND": "",
        "FINETUNE_TRAINER_IMAGE": "finetune-trainer:0.1.0",
    }
    variables = [f"--env={name}={value}" for name, value in env.items()]
    mount = f"--volume={kubeconfig}:{_KUBECONFIG}:ro"
    started = engine.run("run", "--detach", "--network=host", mount, *flags, *variables, image, capture=True)
    return started.strip(), url


def _wait_until_alive(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own address
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise ImageError(f"the operator was not alive after {START_SECONDS} s")
