"""`make cluster` and `make store`: what is printed reaches what runs, examples are taken, nothing is left behind."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dev.cluster import build
from dev.cluster.state import State

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def _demo(run_dir: Path, command: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "dev.demo", f"--run-dir={run_dir}", command]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


@contextmanager
def _up(what: str, run_dir: Path) -> Iterator[dict[str, str]]:
    """Start it and yield the environment that its `export` lines make; end it, and look that nothing is left."""
    started = _demo(run_dir, f"{what}-up")
    assert started.returncode == 0, started.stderr
    try:
        assert all(line.startswith("export ") for line in started.stdout.splitlines())
        pairs = re.findall(r"^export (\w+)=(.*)$", started.stdout, re.MULTILINE)
        yield {**os.environ, **{name: shlex.split(value)[0] for name, value in pairs}}
        state = State.read(run_dir / what)
    finally:
        ended = _demo(run_dir, f"{what}-down")
    assert ended.stdout == f"ended the {what}\n"
    assert state is not None
    assert not [process.name for process in (state.supervisor, *state.parts) if process.is_alive()]


def test_the_store_serves_the_quickstart_to_the_command_line(tmp_path: Path) -> None:
    with _up("store", tmp_path) as environment:
        command = [sys.executable, "-m", "finetune_operator.cli", "estimate", "examples/quickstart.yaml"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "llama, 135 million parameters" in done.stdout
        again = _demo(tmp_path, "store-up")
        assert "store runs already" in again.stderr
    assert _demo(tmp_path, "store-down").stdout == "no store runs\n"


def test_the_cluster_takes_every_example_and_ends_without_a_process(tmp_path: Path) -> None:
    with _up("cluster", tmp_path) as environment:
        for path in EXAMPLES:
            _kubectl(environment, "apply", "-f", str(path))
        jobs = _kubectl(environment, "get", "finetunejobs", "-o", "name")
        assert len(jobs.splitlines()) == len(EXAMPLES)


def _kubectl(environment: dict[str, str], *arguments: str) -> str:
    command = [str(build.assets() / "kubectl"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("what", ["cluster", "store"])
def test_down_without_up(what: str, tmp_path: Path) -> None:
    assert _demo(tmp_path, f"{what}-down").stdout == f"no {what} runs\n"
