"""The trainer beside the plain TRL script: `python -m benchmarks.trainer_bench [METHOD ...] [--rounds N]`.

Step time and peak memory of LoRA, QLoRA, Full and DPO on SmolLM2-135M on a CPU, with the same model, examples, batches,
precision and steps. Ours is prepared and trained by the stages themselves, posting progress, with the default settings
otherwise; the other side is `benchmarks.plain_trl`. Every measurement is a process of its own, the sides take turns,
and OMP_NUM_THREADS is the same (1 unless set). A figure is the median over the rounds, step by step; the first step
does not count. Memory is the peak of the resident set during training (VmHWM, reset when training begins); the column
`before` is the peak until then: libraries, loading, the dry run. Losses are printed side by side: where they differ,
the comparison is void and the exit code 1. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

from benchmarks.trainer_figures import (
    OURS,
    PLAIN,
    TOLERANCE,
    Figures,
    Found,
    figures,
    print_losses,
    print_table,
    said_of,
    same_losses,
    summary,
)
from benchmarks.trainer_settings import (
    BATCH,
    BETA,
    LONGEST,
    MICRO_BATCH,
    PLANNED,
    RANK,
    SEED,
    SETTINGS,
    Setting,
    examples,
)
from dev.models import smollm2
from finetune_contract import paths


def main() -> int:
    """Measure the methods; return 1 where losses differ."""
    options = parser().parse_args()
    started, model = time.monotonic(), smollm2()
    with progress_server() as url:
        methods = options.methods or SETTINGS
        found = {name: compare(SETTINGS[name], model, rounds=options.rounds, url=url) for name in methods}
    void = [name for name, (ours, plain) in found.items() if not same_losses(ours, plain)]
    for name, sides in found.items():
        print_losses(name, *sides)
    print_table(found)
    if void:
        print(f"void, since tokens or losses differ (by more than {TOLERANCE:.0%}): {', '.join(void)}")
    done = {"seconds": round(time.monotonic() - started), "void": void, "trainer": summary(found)}
    print(json.dumps(machine() | done))
    return 1 if void else 0


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    libraries = ("torch", "transformers", "trl", "peft", "bitsandbytes")
    return {
        "threads": _threads(),
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(one, 1) for one in os.getloadavg()],
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", choices=[*SETTINGS, []], metavar="METHOD", help="which; all when absent")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side (default: 3)")
    return parser


@contextmanager
def progress_server() -> Iterator[str]:
    """Take progress posts, as the operator does; yield the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Taken)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/progress"
    server.shutdown()


class _Taken(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def compare(setting: Setting, model: Path, *, rounds: int, url: str) -> tuple[Figures, Figures]:
    """Measure both sides in turns."""
    runs: dict[str, list[Found]] = {OURS: [], PLAIN: []}
    with tempfile.TemporaryDirectory(prefix="trainer-bench-") as scratch:
        folder = Path(scratch)
        write_data(setting, folder)
        for number in range(1, rounds + 1):
            for side, found in measure_both(setting, model, folder, url=url):
                runs[side].append(found)
                print(f"{setting.name} {number}/{rounds} {side}: {said_of(figures([found]))}", flush=True)
    return figures(runs[OURS]), figures(runs[PLAIN])


def measure_both(setting: Setting, model: Path, folder: Path, *, url: str) -> Iterator[tuple[str, Found]]:
    """Measure each side once."""
    yield OURS, measure_ours(setting, model, folder, url=url)
    yield PLAIN, measure_plain(setting, model, folder)


def write_data(setting: Setting, folder: Path) -> None:
    """Write as many examples as the steps take, and two to be held out."""
    for name, count, seed in (("train", BATCH * PLANNED, 1), ("held-out", 2, 2)):
        lines = (f"{json.dumps(one)}\n" for one in examples(count, preference=setting.preference, seed=seed))
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def measure_plain(setting: Setting, model: Path, folder: Path) -> Found:
    """Train by the plain script."""
    out = folder / "plain.json"
    _run(["benchmarks.plain_trl", setting.name, str(model), str(folder / "train.jsonl"), str(out)], folder)
    return _take(out)


def measure_ours(setting: Setting, model: Path, folder: Path, *, url: str) -> Found:
    """Prepare and train by the stages, with nothing left of an earlier round."""
    for used in ("out", "work", "cache"):
        shutil.rmtree(folder / used, ignore_errors=True)
    (folder / "config.json").write_text(json.dumps(run_config(setting, model, folder)))
    out = folder / "ours.json"
    _run(["finetune_trainer", "prepare"], folder)
    _run(["benchmarks.metered_stage", str(out)], folder, url=url)
    return _take(out)


def run_config(setting: Setting, model: Path, folder: Path) -> dict[str, Any]:
    """Return the stages' configuration: what the plain script says as well, and nothing to store or measure."""
    hyperparameters = {
        "maxSteps": PLANNED, "batchSize": BATCH, "microBatchSize": MICRO_BATCH, "learningRate": setting.learning_rate,
        "maxSequenceLength": LONGEST, "seed": SEED, "gradientCheckpointing": False, "precision": setting.precision,
    }  # fmt: skip
    spec: dict[str, Any] = {
        "method": setting.method,
        "model": {"uri": f"file://{model}"},
        "dataset": {
            "uri": f"file://{folder}/train.jsonl",
            "validation": {"uri": f"file://{folder}/held-out.jsonl"},
        },
        "output": {"uri": f"file://{folder}/out"},
        "hyperparameters": hyperparameters,
        "checkpoint": {"everySteps": 2 * PLANNED},
        "evaluation": {"everySteps": 2 * PLANNED, "compareWithBase": False, "samples": {"everySteps": 2 * PLANNED}},
    }
    if setting.with_adapters:
        spec["lora"] = {"rank": RANK}
    if setting.preference:
        spec |= {"objective": "DPO", "hyperparameters": {**hyperparameters, "beta": BETA}}
    return {"job": {"name": "bench", "namespace": "bench", "uid": "bench"}, "spec": spec, "configHash": "bench"}


def _run(module: list[str], folder: Path, *, url: str | None = None) -> None:
    environment = {
        **os.environ,
        paths.ENV_CONFIG: str(folder / "config.json"),
        paths.ENV_WORK: str(folder / "work"),
        paths.ENV_CACHE: str(folder / "cache"),
        paths.ENV_TERMINATION_LOG: str(folder / "message"),
        **({paths.ENV_PROGRESS_URL: url} if url else {}),
        "OMP_NUM_THREADS": str(_threads()),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }
    command = [sys.executable, "-m", *module]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-3000:]}\n{module[0]} ended with {done.returncode}")


def _take(out: Path) -> Found:
    found: Found = json.loads(out.read_text())
    out.unlink()
    return found


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or 1)


if __name__ == "__main__":
    sys.exit(main())
