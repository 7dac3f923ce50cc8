"""The operator as a process of its own, with the rights of its ServiceAccount in a local cluster and no others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev.cluster.local import LocalCluster
from dev.cluster.ports import free_ports
from tests.support.manifests import NAMESPACE

START_SECONDS = 30


@contextmanager
def running_operator(cluster: LocalCluster, **settings: str) -> Iterator[Path]:
    """Run `python -m finetune_operator` until the block ends; the value is its log file."""
    status, health = free_ports(2)
    liveness = f"http://127.0.0.1:{health}/healthz"
    env = {
        "KUBECONFIG": str(cluster.kubeconfig_for_service_account(NAMESPACE, "finetune-operator")),
        "POD_NAMESPACE": NAMESPACE,
        "FINETUNE_STATUS_BIND": f"127.0.0.1:{status}",
        "FINETUNE_LIVENESS_URL": liveness,
        "FINETUNE_TRAINER_IMAGE": "finetune-trainer:0.1.0",
    }
    log = cluster.run_dir / "operator.log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "finetune_operator"]
        process = subprocess.Popen(command, env=os.environ | env | settings, stdout=output, stderr=output)
    try:
        _wait_until_alive(process, liveness, log)
        yield log
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_alive(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own address
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"the operator did not come up:\n{log.read_text()[-4000:]}")
