"""What is shipped, as objects: rendered by the real kubectl and the real helm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from dev.cluster import build

Object = dict[str, Any]
Key = tuple[str, str, str]

ROOT = Path(__file__).parents[2]
KUSTOMIZE = ROOT / "manifests"
CHART = ROOT / "charts" / "finetune-operator"
NAMESPACE = "finetune-system"
RELEASE = "finetune-operator"


def kustomize_objects(folder: Path = KUSTOMIZE) -> dict[Key, Object]:
    """Return what `kubectl apply -k` would send."""
    return _by_key(_output(str(build.assets() / "kubectl"), "kustomize", str(folder)))


def chart_objects(*settings: str, namespace: str = NAMESPACE) -> dict[Key, Object]:
    """Return what `helm install --set ...` would send."""
    flags = [flag for setting in settings for flag in ("--set", setting)]
    return _by_key(_output(str(build.helm()), "template", RELEASE, str(CHART), "--namespace", namespace, *flags))


def run_helm(kubeconfig: Path, *arguments: str) -> str:
    """Run helm against a cluster, with nothing of this user's own configuration."""
    home = kubeconfig.parent / "helm"
    folders = {f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    return _output(str(build.helm()), *arguments, "--kubeconfig", str(kubeconfig), env=folders)


class CommandError(RuntimeError):
    """The command refused; the message is what it said."""


def _output(*command: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=os.environ | (env or {}), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(done.stderr.strip())
    return done.stdout


def _by_key(text: str) -> dict[Key, Object]:
    return {_key(item): item for item in yaml.safe_load_all(text) if item}


def _key(item: Object) -> Key:
    meta = item["metadata"]
    return item["kind"], meta.get("namespace", ""), meta["name"]
