"""One process of a case: `python -m benchmarks.ranks.rank CASE SCALE FOLDER`, described by torchrun's variables."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.ranks.cases import OURS, SCALES, SPEED, Case


def main() -> None:
    """Measure."""
    from finetune_trainer.__main__ import LIBRARY_DEFAULTS

    case, scale, folder = Case.from_json(sys.argv[1]), SCALES[sys.argv[2]], Path(sys.argv[3])
    if case.side != OURS:
        from benchmarks.ranks import plain

        plain.measure_speed(case, scale, folder=folder)
        return
    for name, value in LIBRARY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    from finetune_trainer.logs import logging_to_stderr
    from finetune_trainer.parallel.distributed import join

    with logging_to_stderr("INFO" if os.environ.get("RANK", "0") == "0" else "WARNING"):
        join()
        if case.kind == SPEED:
            from benchmarks.ranks import ours

            ours.measure_speed(case, scale, folder=folder)
        else:
            from benchmarks.ranks import checkpoints

            checkpoints.measure_checkpoint(case, scale, folder=folder)


if __name__ == "__main__":
    main()
