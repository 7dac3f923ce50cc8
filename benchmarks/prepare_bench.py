"""How fast the prepare stage is, and how much memory it takes: `python -m benchmarks.prepare_bench [examples ...]`.

Makes data sets of short conversations (JSON Lines, 60 tokens on average), prepares each in a process of its own with
SmolLM2's tokenizer, and prints seconds, examples a second and the largest resident set of the process and of its
workers; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dev.models import smollm2

_TEXT = """
the a customer asked why her order was late and when it would come invoice refund parcel number please tell me about
your return policy for shoes that do not fit we are sorry to hear this of course you can send them back within thirty
days at no cost to you label money account password reset email address changed yesterday
"""
WORDS = _TEXT.split()


def main() -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("examples", nargs="*", type=int, default=[10_000, 1_000_000], help="sizes of the data sets")
    sizes = parser.parse_args().examples
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(size, Path(folder)))
        print(
            f"{size} examples: {found[-1]['seconds']:.1f} s, {found[-1]['examplesPerSecond']:.0f} examples/s, "
            f"peak {found[-1]['peakMiB']:.0f} MiB",
            flush=True,
        )
    print(json.dumps({"cores": len(os.sched_getaffinity(0)), "prepare": found}))


def measure(size: int, folder: Path) -> dict[str, Any]:
    """Prepare a data set of that size; the log goes to stderr."""
    data = folder / "data.jsonl"
    with data.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(one)}\n" for one in conversations(size))
    _write_config(folder, data)
    environment = {
        **os.environ,
        "FINETUNE_CONFIG": str(folder / "config.json"),
        "FINETUNE_WORK": str(folder / "work"),
        "FINETUNE_CACHE": str(folder / "cache"),
        "FINETUNE_TERMINATION_LOG": str(folder / "message"),
    }
    peak, seconds = _run([sys.executable, "-m", "finetune_trainer", "prepare"], environment)
    return {
        "examples": size,
        "dataMiB": data.stat().st_size / (1 << 20),
        "seconds": seconds,
        "examplesPerSecond": size / seconds,
        "peakMiB": peak / (1 << 20),
    }


def conversations(count: int) -> Iterator[dict[str, Any]]:
    """Yield different conversations."""
    dice = random.Random(1)  # noqa: S311
    for number in range(count):
        asked = f"{number}: {' '.join(dice.choices(WORDS, k=dice.randrange(8, 25)))}?"
        answer = f"{' '.join(dice.choices(WORDS, k=dice.randrange(8, 35)))}."
        yield {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def _write_config(folder: Path, data: Path) -> None:
    spec = {
        "method": "LoRA",
        "model": {"uri": f"file://{smollm2()}"},
        "dataset": {"uri": f"file://{data}"},
        "output": {"uri": f"file://{folder}/out"},
    }
    job = {"name": "bench", "namespace": "bench", "uid": "bench"}
    (folder / "config.json").write_text(json.dumps({"job": job, "spec": spec, "configHash": "bench"}))


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, float]:
    """Run to the end; return the peak of the resident memory of all its processes together, and the seconds."""
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment, process_group=0)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(_resident(path) for path in _processes(process.pid)))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"prepare ended with {process.returncode}")
    return peak, time.monotonic() - started


def _processes(group: int) -> Iterator[Path]:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(path.name)) == group:
                yield path
        except ProcessLookupError:
            continue


def _resident(process: Path) -> int:
    try:
        return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    main()
