"""How a step is computed must not change it: micro-batches, packing, processes, and what these share out.

Four steps of SmolLM2 in float32, on eight orders each. The figures are the largest difference between two runs' losses
at the same step; before it stands how far the losses themselves have moved, without which equality would say nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.quality.figure import Figure, at_most
from benchmarks.quality.job import Finished, run_job
from benchmarks.quality.orders import write_orders

STEPS = 4
BOUND = 1e-3
"""TRL's own bound for runs that ought to be equal (its tests/invariant); sums in another order."""
_LORA: dict[str, Any] = {"method": "LoRA", "lora": {"rank": 8}}
_FULL: dict[str, Any] = {"method": "Full"}
_FEW_ANSWERS = {"prompts": ["Hello."], "everySteps": STEPS}
"""Answers cost more than the steps here, and say nothing about them."""
_RATE = {"LoRA": 1e-3, "Full": 5e-5}


def figures(folder: Path) -> list[Figure]:
    """Run all, and compare them."""
    data = write_orders(folder / "same.jsonl", count=40)
    whole = _run("one-by-eight", data, folder, _LORA, micro=8)
    ddp = _run("full-ddp", data, folder, _FULL, micro=4, processes=2)
    pairs = [
        ("1 x 8 and 8 x 1", whole, _run("eight-by-one", data, folder, _LORA, micro=1)),
        ("packed and unpacked", whole, _run("packed", data, folder, _LORA, micro=8, packing=True)),
        ("two processes and one", whole, _run("ddp", data, folder, _LORA, micro=4, processes=2)),
        ("ZeRO-2 and DDP", ddp, _run("zero-2", data, folder, _FULL, micro=4, processes=2, zero=2)),
        ("ZeRO-3 and DDP", ddp, _run("zero-3", data, folder, _FULL, micro=4, processes=2, zero=3)),
    ]
    return [_figure(name, one, other) for name, one, other in pairs]


def _figure(name: str, one: Finished, other: Finished) -> Figure:
    moved = max(one.losses) - min(one.losses)
    return at_most(f"{name}, largest difference of a loss", before=moved, after=distance(one, other), bound=BOUND)


def distance(one: Finished, other: Finished) -> float:
    """Return the largest difference between two runs' losses at the same step."""
    return max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))


def _run(
    name: str,
    data: Path,
    folder: Path,
    method: dict[str, Any],
    *,
    micro: int,
    packing: bool = False,
    processes: int | None = None,
    zero: int | None = None,
) -> Finished:
    spec = {
        **method,
        "dataset": {"uri": f"file://{data}"},
        "output": {"merged": {"enabled": method is _FULL}},
        "hyperparameters": {
            "maxSteps": STEPS,
            "batchSize": 8,
            "microBatchSize": micro,
            "packing": packing,
            "precision": "float32",
            "learningRate": _RATE[method["method"]],
        },
        "evaluation": {"compareWithBase": False, "everySteps": STEPS, "maxNewTokens": 1, "samples": _FEW_ANSWERS},
        "checkpoint": {"everySteps": STEPS},
        **({"deepspeed": {"zeroStage": zero}} if zero else {}),
    }
    return run_job(name, spec, folder=folder, processes=processes)
