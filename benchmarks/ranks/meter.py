"""What a training costs from step to step, on either side: seconds, tokens, losses, and the peak of a GPU's memory.

With the last step the first process prints it, and all end: checkpoint, measurement and export are no part of it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.ranks.start import FIGURES

_LOADED = time.monotonic()


class SpeedMeter(TrainerCallback):  # type: ignore[misc]  # untyped
    """Notes every step."""

    def __init__(self, *, warm_up: int, facts: Callable[[float], dict[str, Any]]) -> None:
        """Make it; `facts` are what else there is to say, of the tokens a second of all GPUs."""
        self._warm_up, self._facts = warm_up, facts
        self._steps: list[tuple[float, float, float]] = []
        self._began = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin anew with the peak."""
        self._began = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
        """Take a step's figures; every step is logged."""
        if "loss" not in logs:
            return
        self._steps.append((time.monotonic(), logs["num_tokens"], float(logs["loss"])))
        if state.global_step >= state.max_steps:
            self._finish()

    def _finish(self) -> None:
        peak, reserved = most(*memory())
        if is_first():
            say(self._figures() | {"peak_gb": gigabytes(peak), "reserved_gb": gigabytes(reserved)})
        leave()

    def _figures(self) -> dict[str, Any]:
        times = [time for time, _, _ in self._steps]
        first = self._warm_up - 1
        each = [later - one for one, later in zip(times[first:], times[first + 1 :], strict=False)]
        tokens = self._steps[-1][1] - self._steps[first][1]
        speed = tokens / (times[-1] - times[first])
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        return {
            "tokens_per_second_a_gpu": round(speed / ranks, 1),
            "seconds_a_step": [round(one, 3) for one in each],
            "tokens_a_step": round(tokens / len(each)),
            "ready_s": round(self._began - _LOADED, 1),
            "losses": [round(loss, 4) for _, _, loss in self._steps],
            **self._facts(speed),
        }


def say(figures: dict[str, Any]) -> None:
    """Tell who started this process: libraries print lines of their own."""
    print(FIGURES + json.dumps(figures), flush=True)


def is_first() -> bool:
    """Whether this process speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def memory() -> tuple[int, int]:
    """Return the bytes that were allocated at most, and reserved."""
    if not torch.cuda.is_available():
        return 0, 0
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def most(*numbers: int) -> list[int]:
    """Return the highest of all processes."""
    if not torch.distributed.is_initialized():
        return list(numbers)
    found = torch.tensor(numbers, dtype=torch.float64, device="cuda" if torch.cuda.is_available() else "cpu")
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return [int(one) for one in found.tolist()]


def gigabytes(number: float) -> float:
    """Return bytes as they are told."""
    return round(number / 1e9, 2)


def leave() -> None:
    """End this process, all said: groups would wait for those that ended before."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
