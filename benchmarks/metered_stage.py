"""The train stage as its container runs it, with a meter beside its own callbacks.

python -m benchmarks.metered_stage OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.step_meter import StepMeter
from finetune_trainer import train, watchers
from finetune_trainer.__main__ import main
from finetune_trainer.run import Run
from finetune_trainer.training.loop import Loop


def measure(meter: Any) -> int:
    """Run the stage; with the last step the meter ends it. Return the exit code if it ends before."""
    watch_over = watchers.watch_over

    def watch(run: Run, loop: Loop, *rest: Any, **named: Any) -> Any:
        found = watch_over(run, loop, *rest, **named)
        loop.add_callback(meter)
        return found

    vars(train)["watch_over"] = watch
    return main(["train"])


if __name__ == "__main__":
    sys.exit(measure(StepMeter(Path(sys.argv[1]))))
