"""What `benchmarks.trainer_bench` makes of its measurements: medians, whether losses agree, tables."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.trainer_settings import WARM_UP

OURS, PLAIN = "ours", "plain"
TOLERANCE = 0.01
"""Losses may differ by this share: bfloat16, and sums in another order."""
_MIB = 1 << 20
Found = dict[str, Any]
"""What `benchmarks.step_meter` writes."""


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
    seconds = [[later[name] - one[name] for one, later in pairwise(steps)] for steps in rounds]
    found: float = statistics.mean(statistics.median(step) for step in list(zip(*seconds, strict=True))[WARM_UP - 1 :])
    return found


def same_losses(ours: Figures, plain: Figures) -> bool:
    """Return whether both sides trained on the same tokens with the same losses."""
    pairs = zip(ours.losses, plain.losses, strict=True)
    return ours.tokens == plain.tokens and all(abs(a - b) <= TOLERANCE * abs(b) for a, b in pairs)


def said_of(one: Figures) -> str:
    """Return a line of one side's figures."""
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
