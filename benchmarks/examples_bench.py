"""`finetune run` on each file of examples/, on an object store of its own: seconds of each, and whether it ended well.

python -m benchmarks.examples_bench [NAME ...]

Prints a line of a table as each example ends. On a busy machine the processor's seconds say more than the clock's.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from dev.demo.running import build_all, running_store
from dev.demo.seed import CLAIM, MODEL, MODEL_BUCKET
from dev.demo.timing import Stopwatch

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.yaml"))
STORE = Path(".run") / "store"
JUDGE_PORT = 8123
"""As examples/judge.yaml has it."""


def main() -> None:
    """Run the examples that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=EXAMPLES, metavar="NAME", help="examples, without .yaml")
    names = parser.parse_args().names
    build_all(Stopwatch(), control_plane=False)
    with tempfile.TemporaryDirectory() as home, running_store(Path(home) / STORE, Stopwatch()) as running:
        print("| example | seconds | of the processor | load | exit code |\n|---|---|---|---|---|", flush=True)
        for name in names:
            with _judge(Path(home)) if name == "judge" else nullcontext():
                print(_row(name, Path(home) / STORE / "claims", running.access.s3), flush=True)


def _row(name: str, claims: Path, store: Mapping[str, str]) -> str:
    flags = {"pvc": [f"--claims={claims}"], "full-shared": ["--processes=2"]}.get(name, [])
    command = [sys.executable, "-m", "finetune_operator.cli", "run", f"examples/{name}.yaml", *flags]
    load, began, before = os.getloadavg()[0], time.monotonic(), _processor_seconds()
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryFile("w+") as log:
        environment = {**os.environ, **store}
        done = subprocess.run(
            [*command, f"--work-dir={work}"], cwd=ROOT, env=environment, stdout=log, stderr=log, check=False
        )
        if done.returncode:
            log.seek(0)
            print(log.read()[-3000:], file=sys.stderr, flush=True)
    seconds, used = time.monotonic() - began, _processor_seconds() - before
    return f"| {name} | {seconds:.0f} | {used:.0f} | {load:.1f} | {done.returncode} |"


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _judge(home: Path) -> Iterator[None]:
    """Serve the judge with the words of judge.yaml, from a folder below which the store runs as in a checkout."""
    model = str(STORE / "claims" / CLAIM / MODEL_BUCKET / MODEL)
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, f"--port={JUDGE_PORT}"]
    server = subprocess.Popen(
        [*command, "--device=cpu"], cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while server.poll() is None and not _is_healthy():
            time.sleep(0.5)
        yield
    finally:
        server.kill()
        server.wait()


def _is_healthy() -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{JUDGE_PORT}/health", timeout=5).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
