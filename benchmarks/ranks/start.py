"""Starts the processes of a case, one a GPU, and takes what the first one says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ranks.cases import CHECKPOINT, Case

FIGURES = "figures: "
"""What a process's line with its figures begins with."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to run on."""

    scale: str
    gpus: int
    """0: processes on a CPU."""
    limit: float
    """Seconds after which a case is given up."""
    scratch: Path


def run_side_by_side(cases: list[Case], machine: Machine) -> list[dict[str, Any]]:
    """Run cases, each on cards of its own; return their figures, or what went wrong."""
    started = time.monotonic()
    running = [_start(case, machine, first_card=number) for number, case in enumerate(cases)]
    return [
        {"case": case.name, **_result(ranks, machine, deadline=started + machine.limit),
         "wall_s": round(time.monotonic() - started, 1)}
        for case, ranks in zip(cases, running, strict=True)
    ]  # fmt: skip


def _start(case: Case, machine: Machine, *, first_card: int) -> list[subprocess.Popen[str]]:
    folder = folder_of(case, machine)
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    return [_rank(case, machine, folder, rank=rank, port=port, first_card=first_card) for rank in range(case.gpus)]


def folder_of(case: Case, machine: Machine) -> Path:
    """Return a case's folder; a run goes on from the checkpoint in the folder beside its own."""
    place = machine.scratch / f"{case.method}-{case.stage}-{case.kind == 'speed'}".lower()
    return place / ("stored" if case.kind == CHECKPOINT else case.name.replace(" ", "-"))


def _rank(
    case: Case, machine: Machine, folder: Path, *, rank: int, port: int, first_card: int
) -> subprocess.Popen[str]:
    variables = {"LOCAL_WORLD_SIZE": str(case.gpus), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if case.gpus > 1 or case.stage:
        variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.gpus)}
    cards = [] if not machine.gpus else range(case.gpus) if case.gpus > 1 else [first_card]
    variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, cards))
    log = (folder / f"rank-{rank}.log").open("w")
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.ranks.rank", case.to_json(), machine.scale, str(folder)],
        env={**_environment(machine), **variables}, stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip


def _environment(machine: Machine) -> dict[str, str]:
    compiled = {
        "TORCHINDUCTOR_CACHE_DIR": str(machine.scratch / "compiled" / "inductor"),
        "TRITON_CACHE_DIR": str(machine.scratch / "compiled" / "triton"),
    }
    datasets = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(machine.scratch / "datasets")}
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return {**os.environ, **compiled, **datasets, **threads}


def _result(ranks: list[subprocess.Popen[str]], machine: Machine, *, deadline: float) -> dict[str, Any]:
    said = []
    for rank in ranks:
        try:
            said.append(rank.communicate(timeout=max(deadline - time.monotonic(), 1))[0])
        except subprocess.TimeoutExpired:
            for other in ranks:
                other.kill()
            said.append(rank.communicate()[0])
    for line in "\n".join(said).splitlines():
        if line.startswith(FIGURES):
            found: dict[str, Any] = json.loads(line.removeprefix(FIGURES))
            return found
    return {"error": [rank.returncode for rank in ranks]}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
