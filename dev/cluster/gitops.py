"""What GitOps controllers make of an object: Flux's kstatus itself, and Argo CD's way to run a health script.

Both are asked by a small Go program (gitops/main.go), built once and cached. `--wait` of Helm 4 reads kstatus as well.
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dev.cluster.build import GITOPS_HEALTH, built


@dataclass(frozen=True, slots=True)
class Verdict:
    """What both say about an object."""

    kstatus: str
    """InProgress, Failed, Current, Terminating, NotFound or Unknown."""
    argo: str
    """Progressing, Degraded, Healthy, Suspended, Missing, Unknown, or nothing."""
    argo_message: str


def verdicts(objects: Sequence[dict[str, Any]], *, script: str) -> list[Verdict]:
    """Ask both about each object; `script` is Argo CD's health check. Raises CalledProcessError if it does not run."""
    question = json.dumps({"script": script, "objects": list(objects)})
    command = [str(built(GITOPS_HEALTH) / "gitops-health")]
    said = subprocess.run(command, input=question, stdout=subprocess.PIPE, text=True, check=True)
    return [_verdict(item) for item in json.loads(said.stdout)]


def _verdict(item: dict[str, Any]) -> Verdict:
    argo = item["argo"]
    return Verdict(item["kstatus"]["status"], argo.get("status", ""), argo.get("message", ""))
