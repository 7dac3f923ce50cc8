"""The trainer beside the plain TRL script: `python -m benchmarks.trainer_bench [METHOD ...] [--rounds N]`.

Step time and peak memory of LoRA, QLoRA, Full and DPO on SmolLM2-135M on a CPU, with the same model, examples, batches,
precision and steps. Ours is prepared and trained by the stages themselves, with the default settings otherwise; the
other side is `benchmarks.plain_trl`. Every measurement is a process of its own, the sides take turns, and OMP_NUM_THREADS
is the same (1 unless set). A figure is the median over the rounds, step by step; the first step does not count.
Memory is the peak of the resident set during training (VmHWM, reset when training begins). Losses are printed side by
side: where they differ, the comparison is void and the exit code 1. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.trainer_settings import (
    BATCH,
    BETA,
    LONGEST,
    MICRO_BATCH,
    RANK,
    SEED,
    SETTINGS,
    STEPS,
    WARM_UP,
    Setting,
    examples,
)
from dev.models import smollm2

OURS, PLAIN = "ours", "plain"
TOLERANCE = 0.01
"""Losses may differ by this share: bfloat16, and sums in another order."""
_MIB = 1 << 20
Found = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figures:
    """One side's figures, medians over the rounds."""

    wall: float
    """Seconds a step."""
    cpu: float
    """CPU seconds a step, of all threads."""
    tokens_per_second: float
    """Tokens of the examples, padding not counted, per wall second."""
    peak: float
    """MiB resident at most during training."""
    before: float
    """MiB resident at most before the first step: libraries, loading, dry run."""
    losses: list[float]
    tokens: list[float]


def main() -> int:
    """Measure the methods; return 1 where losses differ."""
    options = _parser().parse_args()
    started, model = time.monotonic(), smollm2()
    found = {name: compare(SETTINGS[name], model, rounds=options.rounds) for name in options.methods}
    void = [name for name, (ours, plain) in found.items() if not same_losses(ours, plain)]
    for name, sides in found.items():
        print_losses(name, *sides)
    print_table(found)
    if void:
        print(f"void, since the losses differ by more than {TOLERANCE:.0%}: {', '.join(void)}")
    seconds = time.monotonic() - started
    print(json.dumps({"threads": _threads(), "seconds": round(seconds), "void": void, "trainer": summary(found)}))
    return 1 if void else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", choices=list(SETTINGS), default=list(SETTINGS), metavar="METHOD")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side (default: 3)")
    return parser


def compare(setting: Setting, model: Path, *, rounds: int) -> tuple[Figures, Figures]:
    """Measure both sides in turns."""
    runs: dict[str, list[Found]] = {OURS: [], PLAIN: []}
    with tempfile.TemporaryDirectory(prefix="trainer-bench-") as scratch:
        folder = Path(scratch)
        write_data(setting, folder)
        for number in range(1, rounds + 1):
            for side, measure in ((OURS, measure_ours), (PLAIN, measure_plain)):
                found = measure(setting, model, folder)
                runs[side].append(found)
                print(f"{setting.name} {number}/{rounds} {side}: {_line(figures([found]))}", flush=True)
    return figures(runs[OURS]), figures(runs[PLAIN])


def write_data(setting: Setting, folder: Path) -> None:
    """Write as many examples as the steps take, and two to be held out."""
    for name, count, seed in (("train", BATCH * STEPS, 1), ("held-out", 2, 2)):
        lines = (f"{json.dumps(one)}\n" for one in examples(count, preference=setting.preference, seed=seed))
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def measure_plain(setting: Setting, model: Path, folder: Path) -> Found:
    """Train by the plain script."""
    out = folder / "plain.json"
    _run(["benchmarks.plain_trl", setting.name, str(model), str(folder / "train.jsonl"), str(out)], folder, out=out)
    return _take(out)


def measure_ours(setting: Setting, model: Path, folder: Path) -> Found:
    """Prepare and train by the stages, with nothing left of an earlier round."""
    for used in ("out", "work", "cache"):
        shutil.rmtree(folder / used, ignore_errors=True)
    (folder / "config.json").write_text(json.dumps(run_config(setting, model, folder)))
    out = folder / "ours.json"
    _run(["finetune_trainer", "prepare"], folder, out=None)
    _run(["benchmarks.metered_stage", str(out)], folder, out=out)
    return _take(out)


def run_config(setting: Setting, model: Path, folder: Path) -> dict[str, Any]:
    """Return the stages' configuration: what the plain script says as well, and no checkpoint or evaluation in between."""
    hyperparameters = {
        "maxSteps": STEPS, "batchSize": BATCH, "microBatchSize": MICRO_BATCH, "learningRate": setting.learning_rate,
        "maxSequenceLength": LONGEST, "seed": SEED, "gradientCheckpointing": False,
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
        "checkpoint": {"everySteps": 2 * STEPS},
        "evaluation": {"everySteps": 2 * STEPS, "compareWithBase": False, "samples": {"everySteps": 2 * STEPS}},
    }
    if setting.with_adapters:
        spec["lora"] = {"rank": RANK}
    if setting.preference:
        spec |= {"objective": "DPO", "hyperparameters": {**hyperparameters, "beta": BETA}}
    return {"job": {"name": "bench", "namespace": "bench", "uid": "bench"}, "spec": spec, "configHash": "bench"}


def _run(module: list[str], folder: Path, *, out: Path | None) -> None:
    environment = {
        **os.environ,
        "FINETUNE_CONFIG": str(folder / "config.json"),
        "FINETUNE_WORK": str(folder / "work"),
        "FINETUNE_CACHE": str(folder / "cache"),
        "FINETUNE_TERMINATION_LOG": str(folder / "message"),
        "OMP_NUM_THREADS": str(_threads()),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }
    log = folder / "log"
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", *module], env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode or (out and not out.exists()):
        sys.exit(f"{log.read_text()[-3000:]}\n{module[0]} ended with {done.returncode} before its last step")


def _take(out: Path) -> Found:
    found: Found = json.loads(out.read_text())
    out.unlink()
    return found


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or 1)


def figures(runs: list[Found]) -> Figures:
    """Return the medians: of each step over the rounds, then the mean over the steps, which are of different sizes."""
    steps = [run["steps"] for run in runs]
    wall, cpu = (_mean_step(steps, name) for name in ("wall", "cpu"))
    tokens = [one["tokens"] for one in steps[0]]
    return Figures(
        wall=wall,
        cpu=cpu,
        tokens_per_second=(tokens[-1] - tokens[WARM_UP - 1]) / (len(tokens) - WARM_UP) / wall,
        peak=statistics.median(run["peak"] for run in runs) / _MIB,
        before=statistics.median(run["before"] for run in runs) / _MIB,
        losses=[one["loss"] for one in steps[0]],
        tokens=tokens,
    )


def _mean_step(rounds: list[list[Found]], name: str) -> float:
    seconds = [[later[name] - one[name] for one, later in zip(steps, steps[1:], strict=False)] for steps in rounds]
    return statistics.mean(statistics.median(step) for step in list(zip(*seconds, strict=True))[WARM_UP - 1 :])


def same_losses(ours: Figures, plain: Figures) -> bool:
    """Return whether both sides trained on the same tokens with the same losses."""
    pairs = zip(ours.losses, plain.losses, strict=True)
    return ours.tokens == plain.tokens and all(abs(a - b) <= TOLERANCE * abs(b) for a, b in pairs)


def _line(one: Figures) -> str:
    return (
        f"{one.wall:.2f} s a step, {one.cpu:.2f} s of CPU, {one.tokens_per_second:.0f} tokens/s, "
        f"peak {one.peak:.0f} MiB (before training {one.before:.0f})"
    )


def print_losses(name: str, ours: Figures, plain: Figures) -> None:
    """Print the losses of the steps, and the tokens up to each."""
    print(f"{name}: step, tokens so far and loss, ours and plain")
    for step, row in enumerate(zip(ours.tokens, plain.tokens, ours.losses, plain.losses, strict=True), start=1):
        print("  {:2d}  {:6.0f} {:6.0f}  {:.5f} {:.5f}".format(step, *row))


def print_table(found: dict[str, tuple[Figures, Figures]]) -> None:
    """Print both sides of each method, and ours as a share of the plain script's."""
    columns = ("wall", "cpu", "tokens_per_second", "peak", "before")
    print(f"{'':14}{'s/step':>9}{'CPU s':>9}{'tokens/s':>10}{'peak MiB':>10}{'before':>9}")
    for name, (ours, plain) in found.items():
        rows = [[getattr(side, column) for column in columns] for side in (ours, plain)]
        rows.append([a / b for a, b in zip(*rows, strict=True)])
        for label, (wall, cpu, speed, peak, before) in zip((OURS, PLAIN), rows[:2], strict=True):
            print(f"{name:7}{label:7}{wall:9.2f}{cpu:9.2f}{speed:10.0f}{peak:10.0f}{before:9.0f}")
        wall, cpu, speed, peak, before = rows[2]
        print(f"{'':7}{'ratio':7}{wall:9.2f}{cpu:9.2f}{speed:10.2f}{peak:10.2f}{before:9.2f}")


def summary(found: dict[str, tuple[Figures, Figures]]) -> dict[str, Any]:
    """Return the figures for the last line."""
    return {
        name: {
            **{label: _rounded(side) for label, side in ((OURS, ours), (PLAIN, plain))},
            "stepRatio": round(ours.wall / plain.wall, 3),
            "cpuRatio": round(ours.cpu / plain.cpu, 3),
            "memoryRatio": round(ours.peak / plain.peak, 3),
        }
        for name, (ours, plain) in found.items()
    }


def _rounded(side: Figures) -> dict[str, float]:
    return {
        "secondsAStep": round(side.wall, 3),
        "cpuSecondsAStep": round(side.cpu, 3),
        "tokensPerSecond": round(side.tokens_per_second, 1),
        "peakMiB": round(side.peak),
        "beforeMiB": round(side.before),
    }


if __name__ == "__main__":
    sys.exit(main())
