"""A checkout below /tmp, as CI machines have it: pods see it although they mount a /tmp of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys, time
from dev.cluster.local import LocalCluster

with LocalCluster(sys.argv[1], with_s3=False) as cluster:
    cluster.kubectl("create", "-f", "-", input=sys.argv[2])
    cluster.kubectl("wait", "pod/reader", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
    print(cluster.kubectl("logs", "reader", "-c", "main"))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        yield Path(scratch)


def test_init_and_main_container_see_the_checkout_below_their_own_tmp(folder: Path) -> None:
    checkout = folder / "checkout"
    shutil.copytree(ROOT / "dev", checkout / "dev", ignore=shutil.ignore_patterns("__pycache__"))
    python = _environment(checkout / ".venv")
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]
    container = {"image": "any", "command": ["head", "-1", f"{checkout}/dev/cluster/go.mod"], "volumeMounts": mounts}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "reader"},
        "spec": {
            "restartPolicy": "Never",
            "initContainers": [{"name": "first", **container}],
            "containers": [{"name": "main", **container, "securityContext": {"readOnlyRootFilesystem": True}}],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }
    command = [str(python), "-c", SCRIPT, str(folder / "run"), json.dumps(pod)]
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("module finetuning.dev"), done.stderr


def _environment(folder: Path) -> Path:
    """Make an environment inside the checkout, as `make venv` does; it borrows the packages of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin" / "python"
