"""The processes of `benchmarks.gpu`: what a side reads is made first, then it is launched, and told when to begin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Timer
from typing import Any

from benchmarks.gpu_cases import RANK, SHAPES, TOKENS_A_STEP, Case, Side
from benchmarks.gpu_inputs import WORDS, environment, run_config, shards, write_data

Found = dict[str, Any]
_LOG = 1500
_PROFILED = 1
_LOADING = 30
"""Steps in which newer kernels come, 54 s of an 8B model."""
_ALL_GB = 1 << 30


@dataclass(frozen=True, slots=True)
class Running:
    """One side's process."""

    process: subprocess.Popen[str]
    out: Path
    log: Path
    timer: Timer

    def begin(self) -> None:
        """Tell it that the card is free."""
        assert self.process.stdin
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it has failed already, and its log says why
            return
        self.timer.start()

    def result(self) -> Found:
        """Return its figures, or how it failed."""
        code = self.process.wait()
        self.timer.cancel()
        if self.out.is_file():
            found: Found = json.loads(self.out.read_text())
            return found
        return {"error": f"exit code {code}", "log": self.log.read_text(errors="replace")[-_LOG:]}


class Bench:
    """Makes inputs and processes below one folder."""

    def __init__(self, folder: Path, *, warm_up: int, timed: int, budget: float, on_gpu: bool) -> None:
        """Sides may take `budget` seconds each."""
        self._folder, self._warm_up, self._budget, self._on_gpu = folder, warm_up, budget, on_gpu
        self._timed = timed
        self._shape = ""
        self._began = time.monotonic()
        self._launched = 0

    @property
    def seconds(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._began

    def launch(self, case: Case, side: Side) -> Running:
        """Start a side's process, which waits for its turn; what it reads is made before."""
        inputs = self._inputs(case)
        self._launched += 1
        folder = self._folder / f"side-{self._launched}"
        folder.mkdir()
        out, log = folder / "found.json", folder / "log"
        (folder / "request.json").write_text(json.dumps(self._request(case, side, inputs, out)))
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_side", str(folder / "request.json")],
            stdin=subprocess.PIPE, stdout=log.open("w"), stderr=subprocess.STDOUT, text=True, cwd=folder,
            env={**self._environment(), **environment(inputs), "GPU_BENCH_BEGAN": repr(time.time())},
        )  # fmt: skip
        return Running(process, out, log, Timer(self._budget, process.kill))

    def _request(self, case: Case, side: Side, inputs: Path, out: Path) -> Found:
        batch = TOKENS_A_STEP // case.data.longest if side.packing else case.data.batch
        return {
            **asdict(side),
            "model": str(self._folder / "model"),
            "base": case.base,
            "longest": case.data.longest,
            "batch": batch,
            "rank": RANK,
            "steps": self._steps(case),
            "warm_up": self._warm_up_of(case),
            "memory_gb": case.memory_gb,
            "long_run": case.long_run,
            "shards": shards(inputs),
            "out": str(out),
        }

    def _inputs(self, case: Case) -> Path:
        """Return the folder of a case's configuration and prepared examples, as a new run has it."""
        folder = self._folder / case.name.replace(" ", "-").replace(",", "")
        if case.shape != self._shape:
            shutil.rmtree(self._folder / "model", ignore_errors=True)
            self._run(["benchmarks.gpu_inputs", case.shape, str(self._folder / "model")])
            self._shape = case.shape
        if not folder.is_dir():
            # An example more than the steps take, so that none begins a second epoch.
            words = min(WORDS, SHAPES[case.shape]["vocab_size"] - 3)
            write_data(case.data, steps=self._steps(case) + 1, words=words, folder=folder / "data")
            config = run_config(
                case,
                steps=self._steps(case),
                model=self._folder / "model",
                folder=folder,
                gpu_memory=self._memory(case),
            )
            (folder / "config.json").write_text(json.dumps(config))
            self._run(["finetune_trainer", "prepare"], environment(folder))
        return folder

    def _steps(self, case: Case) -> int:
        return self._warm_up_of(case) + self._timed + _PROFILED

    def _warm_up_of(self, case: Case) -> int:
        return max(self._warm_up, _LOADING) if case.long_run else self._warm_up

    def _memory(self, case: Case) -> int | None:
        if not self._on_gpu:
            return None
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        there = int(subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[0]) << 20
        return int(min(there, (case.memory_gb or _ALL_GB) * 1e9))

    def _run(self, module: list[str], variables: dict[str, str] | None = None) -> None:
        done = subprocess.run(
            [sys.executable, "-m", *module], env={**self._environment(), **(variables or {})}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{done.stdout[-3000:]}\n{module[0]} ended with {done.returncode}")

    def _environment(self) -> dict[str, str]:
        here = str(Path(__file__).parent.parent)
        found = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(self._folder / "datasets")}
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), here)))
        return found if self._on_gpu else {**found, "CUDA_VISIBLE_DEVICES": ""}
