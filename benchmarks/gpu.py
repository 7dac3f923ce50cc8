"""Ours beside the peers on this machine's GPU: `python -m benchmarks.gpu --out FOLDER [--only CASE ...]`

Each side of a case is a process of its own and trains the same model on the same tokens, examples a step and steps:
ours by its train stage, as a FineTuneJob starts it, with nothing set; TRL by its guides' script; Unsloth by its guide's
with the settings in its name. The libraries of the next process load while one measures; the card is used by one.

FOLDER/gpu.json holds {case, who, tokens_per_second, peak_gb, repeats, spread, start_s, ...} of each with card,
versions and command, FOLDER/gpu.md its tables, FOLDER/gpu.svg a chart; all are written after each side, so that a run
that is cut short loses nothing, and one with --keep goes on. `repeats` are the timed steps,
after --warm-up ones; `spread` is their largest difference as a share of the median. After them one step is profiled.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_cases import CASES, OURS, SMOKE_CASE, Case, Side
from benchmarks.gpu_processes import Bench, Running
from benchmarks.gpu_report import write_report
from benchmarks.installed import versions_of

Found = dict[str, Any]
PACKAGES = ("torch", "triton", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "unsloth")


def main() -> int:
    """Measure; return 1 if a side of ours failed."""
    options = _parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    report = _report(options)
    known = {case.name: case for case in CASES}
    cases = [SMOKE_CASE] if options.smoke else [known[name] for name in options.only or known]
    turns = [(case, side) for case in cases for side in case.sides if side.label.startswith(tuple(options.who))]
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=options.scratch) as scratch:
        bench = Bench(
            Path(scratch), warm_up=options.warm_up, timed=options.steps, budget=options.budget, on_gpu=not options.smoke
        )
        for found in _measured(turns, bench, until=options.until):
            report["results"] = [one for one in report["results"] if _key(one) != _key(found)] + [found]
            print(json.dumps({name: value for name, value in found.items() if name != "split_ms"}), flush=True)
            write_report(report, options.out)
    return int(any("error" in one and one["who"] == OURS for one in report["results"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", nargs="*", default=[], choices=[case.name for case in CASES], metavar="CASE")
    parser.add_argument("--who", nargs="*", default=[""], help="sides whose name begins so: ours, TRL, Unsloth, ...")
    parser.add_argument("--budget", type=float, default=150, help="seconds a side at most (default: 150)")
    parser.add_argument("--until", type=float, default=1e9, help="begin no side after so many seconds")
    parser.add_argument("--steps", type=int, default=4, help="timed steps (default: 4)")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="go on with the results that FOLDER has")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU, to see that all sides run")
    parser.add_argument("--scratch", type=Path, help="where the models are written (default: the temporary folder)")
    return parser


def _report(options: argparse.Namespace) -> Found:
    file = options.out / "gpu.json"
    if options.keep and file.is_file():
        found: Found = json.loads(file.read_text())
        return found
    command = "python -m benchmarks.gpu " + " ".join(sys.argv[1:])
    return {**versions(), "command": command, "results": []}


def _key(found: Found) -> tuple[str, str]:
    return found["case"], found["label"]


def versions() -> Found:
    """Return what the figures depend on, without loading any of it."""
    found: Found = {"device": "cpu", "python": sys.version.split()[0]}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found["device"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0]
    return found | versions_of(PACKAGES)


def _measured(turns: list[tuple[Case, Side]], bench: Bench, *, until: float) -> Iterator[Found]:
    """Yield the figures of each side; the next one's libraries load meanwhile, if it is of the same model."""
    upcoming: Running | None = None
    for (case, side), following in zip(turns, [*turns[1:], None], strict=True):
        if upcoming is None and bench.seconds > until:
            return
        running = upcoming or bench.launch(case, side)
        running.begin()
        ahead = following is not None and following[0].shape == case.shape and bench.seconds < until
        upcoming = bench.launch(*following) if ahead and following else None
        yield {"case": case.name, "who": side.who, "label": side.label, **running.result()}


if __name__ == "__main__":
    sys.exit(main())
