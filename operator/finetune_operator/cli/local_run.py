"""One FineTuneJob on this machine: who it is, where it works, and which attempt of which run this is.

A name and an output make a job: its uid is derived from them, so that a second `finetune run` finds its own work in
storage and goes on from the last checkpoint. A changed manifest is a new run of the same job, as in a cluster.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from finetune_contract import paths
from finetune_contract.model import Model
from finetune_contract.run_config import Device, JobIdentity, RunConfig
from finetune_contract.spec import TuningSpec
from finetune_operator.api.hashing import config_hash
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.builders.quantities import quantity

NAMESPACE = "local"
_STATE = "state.json"


class State(Model):
    """state.json: what the last `finetune run` of this job was."""

    config_hash: str
    run: int
    attempt: int


@dataclass(frozen=True, slots=True)
class LocalRun:
    """A job with its folder on this machine."""

    name: str
    spec: dict[str, Any]
    """As in the manifest, overrides applied."""
    folder: Path
    claims: Path | None
    """Where pvc://claim/path lies."""

    @property
    def uid(self) -> str:
        """The same for the same name and output."""
        return str(uuid5(NAMESPACE_URL, f"finetune-run\n{self.name}\n{self.spec['output']['uri']}"))

    def config(self, device: Device) -> RunConfig:
        """Return the configuration of the next attempt, and count it."""
        digest = config_hash(self.spec)
        state = self._next_state(digest)
        (self.folder / _STATE).write_text(state.to_json())
        spec = FineTuneJobSpec.model_validate(self.spec)
        return RunConfig(
            job=JobIdentity(name=self.name, namespace=NAMESPACE, uid=self.uid, run=state.run, attempt=state.attempt),
            spec=TuningSpec(**{name: getattr(spec, name) for name in TuningSpec.model_fields}),
            device=device,
            config_hash=digest,
        )

    def _next_state(self, digest: str) -> State:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            last = State.model_validate_json((self.folder / _STATE).read_bytes())
        except (OSError, ValueError):
            return State(config_hash=digest, run=1, attempt=1)
        if last.config_hash == digest:
            return State(config_hash=digest, run=last.run, attempt=last.attempt + 1)
        return State(config_hash=digest, run=last.run + 1, attempt=1)

    def environment(self, config_file: Path, message_file: Path) -> dict[str, str]:
        """Return a stage's environment: the user's own, and where everything lies."""
        return {
            **os.environ,
            paths.ENV_CONFIG: str(config_file),
            paths.ENV_TERMINATION_LOG: str(message_file),
            paths.ENV_WORK: str(self.folder / "work"),
            paths.ENV_CACHE: str(cache_folder() / "models"),
            **({paths.ENV_CLAIMS: str(self.claims)} if self.claims else {}),
        }


def cache_folder() -> Path:
    """Return the user's cache folder for `finetune run`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "finetune-operator" / "run"


def default_folder(name: str, output_uri: str) -> Path:
    """Return where a job works when nothing else is said: one folder a name and output."""
    job = LocalRun(name=name, spec={"output": {"uri": output_uri}}, folder=Path(), claims=None)
    return cache_folder() / "jobs" / f"{name}-{job.uid[:8]}"


def local_device(spec: FineTuneJobSpec) -> tuple[Device, str]:
    """Return what there is of what the job asks for, and a note if it is less."""
    asked = 1 if spec.resources.gpus_per_node is None else spec.resources.gpus_per_node
    if not asked:
        return Device(), ""
    memory = _gpu_memory()
    if memory is None:
        return Device(), "no NVIDIA GPU on this machine: the CPU is used"
    wanted = spec.resources.gpu_memory
    return Device(gpus=1, gpu_memory_bytes=memory if wanted is None else int(quantity(wanted))), ""


def _gpu_memory() -> int | None:
    """Return the memory of this machine's smallest GPU; asked of the driver, since torch takes seconds to import."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    sizes = [int(line) for line in done.stdout.split() if line.isdigit()]
    return min(sizes) << 20 if not done.returncode and sizes else None
