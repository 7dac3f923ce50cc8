"""Training on several GPUs: `python -m benchmarks.multi_gpu`, as many as this machine has; a JSON line a case.

Speed: an 8B Llama with random weights, trained whole with ZeRO-2 and ZeRO-3 and by LoRA and QLoRA with DDP, on 1, 2, 4
and 8 GPUs, sequences of 2048 tokens and instruction lengths packed, each beside TRL's script with its defaults
(`plain`), and trained whole also with activations kept (`plain-kept`). Every GPU has as many tokens a step on any
number of them. Checkpoints: stored on all GPUs, gone on with on half of them, the final weights held against them.
Faults: a process killed in the middle.

    --only WORD ...     cases whose name has all these words; again for more (--only speed LoRA x2 --only fault)
    --seconds N         no case begins later; what was left out is the last line
    --list              the cases' names
    --scale tiny        a tiny model, which a CPU can train, too (--processes N there)
    --table FILE ...    a table of earlier lines: scaling, the trainer beside the script, peaks beside the estimate

The first line holds what the figures depend on. Cases of one GPU run side by side, one a card.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.installed import versions_of
from benchmarks.ranks.cases import FAULT, SCALES, Case, cases, chosen, rounds
from benchmarks.ranks.start import Machine, folder_of, run_side_by_side
from benchmarks.ranks.table import lines_of, table

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "bitsandbytes", "triton")


def main() -> int:
    """Measure; return 1 where a case failed."""
    options = _parser().parse_args()
    if options.table:
        print(table(lines_of(options.table)))
        return 0
    gpus, names = _cards()
    wanted = chosen(cases(gpus or options.processes), options.only)
    if options.list:
        print("\n".join(case.name for case in wanted))
        return 0
    print(json.dumps(environment(names)), flush=True)
    with tempfile.TemporaryDirectory(prefix="multi-gpu-", dir=options.scratch) as scratch:
        machine = Machine(options.scale, gpus, options.limit, Path(scratch))
        return _measure(wanted, machine, width=gpus or options.processes, seconds=options.seconds, logs=options.logs)


def _measure(wanted: list[Case], machine: Machine, *, width: int, seconds: float, logs: Path | None) -> int:
    started, failed, left = time.monotonic(), False, list[str]()
    for together in rounds(wanted, gpus=width):
        names = [case.name for case in together]
        if time.monotonic() - started > seconds:
            left += names
            continue
        print(f"{time.monotonic() - started:.0f} s: {', '.join(names)}", file=sys.stderr, flush=True)
        for line in run(together, machine, width=width):
            failed |= "error" in line
            print(json.dumps(line), flush=True)
        if logs:
            _keep_logs(together, machine, logs)
    if left:
        print(json.dumps({"left_out": left}), flush=True)
    return int(failed)


def run(together: list[Case], machine: Machine, *, width: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of cases that run side by side."""
    if together[0].kind != FAULT:
        yield from run_side_by_side(together, machine)
        return
    from benchmarks.ranks.faults import kill_a_rank

    started = time.monotonic()
    found = kill_a_rank(machine.scratch / FAULT, gpus=machine.gpus and width, ranks=max(width, 2))
    yield {"case": together[0].name, **found, "wall_s": round(time.monotonic() - started, 1)}


def _keep_logs(together: list[Case], machine: Machine, folder: Path) -> None:
    """Append the end of what each case's first process said to one file."""
    with folder.open("a", encoding="utf-8") as out:
        for case in together:
            log = folder_of(case, machine) / "rank-0.log"
            if log.is_file():
                out.write(f"=== {case.name}\n{log.read_text(errors='replace')[-6000:]}\n")


def environment(cards: list[str]) -> dict[str, Any]:
    """Return what the figures depend on."""
    found: dict[str, Any] = {"cards": cards, "python": platform.python_version(), "cores": os.cpu_count()}
    return found | versions_of(_PACKAGES)


def _cards() -> tuple[int, list[str]]:
    import torch

    number = torch.cuda.device_count()
    return number, [torch.cuda.get_device_name(card) for card in range(number)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", action="append", default=[], metavar="WORD")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--limit", type=float, default=240.0, help="seconds after which a case is given up")
    parser.add_argument("--scale", choices=sorted(SCALES), default="8b")
    parser.add_argument("--processes", type=int, default=2, help="on a CPU (default: 2)")
    parser.add_argument("--scratch", type=Path, help="where checkpoints and compiled kernels lie for the time of it")
    parser.add_argument("--logs", type=Path, help="a file for the ends of the processes' logs")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
