"""What a process of `benchmarks.gpu` notes while it trains; the same for every side."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.gpu_split import split_of

Found = dict[str, Any]


class GpuMeter(TrainerCallback):  # type: ignore[misc]  # untyped
    """Notes when each step ends, on the GPU's own clock where there is one; then it writes a JSON file and ends."""

    def __init__(self, out: Path, *, warm_up: int, began: float, tokens: Callable[[int, int], float] | None) -> None:
        """`began` is when the process began, less the time that it waited for its turn.

        `tokens` returns those of the steps between two; without it they stand in the log.
        """
        self._out, self._warm_up, self._began, self._tokens = out, warm_up, began, tokens
        self._ends: list[Any] = []
        self._logged: list[Found] = []
        self._first: float | None = None
        self._profile: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin with the peak."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_step_begin(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Profile the last step, whose time does not count."""
        if state.global_step == state.max_steps - 1 and torch.cuda.is_available():
            _wait()
            self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profile.start()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Note a step's end, before a last one's samples are asked for. The host may be ahead of the GPU's event."""
        self._ends.append(_now())
        if self._first is None:
            _wait()
            self._first = time.time() - self._began
        if self._profile:
            _wait()
            self._profile.stop()

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
        """Take a step's figures, which may come while the next one is under way."""
        if "loss" not in logs:
            return
        self._logged.append({"loss": logs["loss"], "tokens": logs.get("num_tokens")})
        if state.global_step >= state.max_steps:
            self._finish()

    def _finish(self) -> None:
        split = split_of(self._profile) if self._profile else {}
        self._out.write_text(json.dumps({**self._figures(), "split_ms": split}))
        os._exit(0)

    def _figures(self) -> Found:
        begin, end = self._warm_up - 1, len(self._logged) - 2  # the last was profiled
        seconds = [_between(one, later) for one, later in pairwise(self._ends[begin : end + 1])]
        done = self._tokens or (lambda first, last: self._logged[last]["tokens"] - self._logged[first]["tokens"])
        on_gpu = torch.cuda.is_available()
        return {
            "tokens_per_second": round(done(begin, end) / sum(seconds), 1),
            "seconds_a_step": [round(one, 3) for one in seconds],
            "repeats": len(seconds),
            "spread": round((max(seconds) - min(seconds)) / statistics.median(seconds), 4),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if on_gpu else None,
            "start_s": round(self._first or 0.0, 1),
            "losses": [round(one["loss"], 4) for one in self._logged],
        }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _now() -> Any:
    """Return an event of the GPU's stream, or the time."""
    if not torch.cuda.is_available():
        return time.monotonic()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(one: Any, later: Any) -> float:
    """Return the seconds between two."""
    return later - one if isinstance(one, float) else float(one.elapsed_time(later)) / 1e3
