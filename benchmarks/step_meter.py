"""What a training costs from step to step: wall and CPU seconds, tokens, losses, and the peak of its memory.

The same callback is added to both sides of `benchmarks.trainer_bench`. After so many steps it writes what it found and
ends the process, before the training's own last step: checkpoints, evaluation and export are no part of the comparison.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks.trainer_settings import STEPS

_RESET_PEAK = "5"
"""Written to clear_refs it sets VmHWM back to what is resident now (proc_pid_clear_refs(5))."""


class StepMeter(TrainerCallback):  # type: ignore[misc]  # untyped
    """Writes a JSON file: `steps`, and the bytes resident at most `before` training and at its `peak`."""

    def __init__(self, out: Path) -> None:
        self._out, self._before = out, 0
        self._steps: list[dict[str, float]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin anew with the peak."""
        self._before = peak_resident()
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
        """Take a step's figures; every step is logged."""
        if "loss" not in logs:
            return
        self._steps.append(
            {
                "wall": time.monotonic(),
                "cpu": time.process_time(),
                "loss": logs["loss"],
                "tokens": logs["num_tokens"],
            }
        )
        if state.global_step >= STEPS:
            self._finish()

    def _finish(self) -> None:
        found = {"steps": self._steps, "before": self._before, "peak": peak_resident()}
        self._out.write_text(json.dumps(found))
        os._exit(0)


def peak_resident() -> int:
    """Return the most bytes that were resident in this process (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
