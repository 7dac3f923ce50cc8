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
from finetune_operator.api.quantities import quantity

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


def local_device(spec: FineTuneJobSpec, *, processes: int | None = None) -> tuple[Device, str]:
    """Return what there is of what the job asks for, and a note if it is less; `processes` are for a CPU."""
    asked = spec.resources.gpus
    if not asked:
        return Device(processes=processes), ""
    sizes = _gpu_memory()
    if not sizes:
        return Device(processes=processes), "no NVIDIA GPU on this machine: the CPU is used"
    batch_size, there = spec.hyperparameters.batch_size, min(asked, len(sizes))
    gpus = max(number for number in range(1, there + 1) if batch_size % number == 0)
    note = "" if gpus == asked else f"{gpus} of the {asked} GPUs asked for: this machine has {len(sizes)}"
    wanted = spec.resources.gpu_memory
    return Device(gpus=gpus, gpu_memory_bytes=min(sizes) if wanted is None else int(quantity(wanted))), note


def _gpu_memory() -> list[int]:
    """Return the memory of each of this machine's GPUs; asked of the driver, since torch takes seconds to import."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return [int(line) << 20 for line in done.stdout.split() if line.isdigit()] if not done.returncode else []
