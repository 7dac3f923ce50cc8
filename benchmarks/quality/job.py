"""A FineTuneJob run as a user runs it: `finetune run`, its outputs in a folder."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.models import smollm2
from finetune_contract import paths

_EVERY = 20.0
"""Seconds between two lines on how far a run is."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that has completed."""

    folder: Path
    """Its outputs."""

    @property
    def evaluation(self) -> dict[str, Any]:
        """evaluation.json."""
        content: dict[str, Any] = json.loads((self.folder / paths.EVALUATION).read_text())
        return content

    @property
    def losses(self) -> list[float]:
        """Training loss, step by step."""
        return [point["value"] for point in self.evaluation["training"]["losses"]]


def run_job(name: str, spec: dict[str, Any], *, folder: Path, processes: int | None = None) -> Finished:
    """Tune SmolLM2 by a spec that lacks model and output; SystemExit with the log's end where that fails."""
    place = folder / name
    place.mkdir(parents=True)
    whole = {"model": {"uri": f"file://{smollm2()}"}, **spec}
    whole["output"] = {**spec.get("output", {}), "uri": f"file://{place}/out"}
    job = {"apiVersion": "finetuning.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": whole}
    (place / "job.yaml").write_text(json.dumps(job))
    command = [sys.executable, "-m", "finetune_operator.cli", "run", str(place / "job.yaml")]
    command += ["--work-dir", str(place / "work"), *(["--processes", str(processes)] if processes else [])]
    started = time.monotonic()
    _follow(name, command, log=place / "log")
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return Finished(place / "out" / "run-1")


def _follow(name: str, command: list[str], *, log: Path) -> None:
    """Run a command to its end; say now and then what its log says."""
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
        while True:
            try:
                code = process.wait(timeout=_EVERY)
            except subprocess.TimeoutExpired:
                print(f"{name}: {_last_line(log)}", flush=True)
            except BaseException:
                process.terminate()
                raise
            else:
                break
    if code:
        sys.exit(f"{name}: exit code {code}\n{log.read_text(errors='replace')[-3000:]}")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1][:150] if lines else "starting"
