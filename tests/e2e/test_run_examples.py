"""The cheapest examples as README says: a store of one's own, `finetune run` on the file, outputs that are checked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.demo.running import Running, running_store
from dev.demo.timing import Stopwatch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[Running]:
    with running_store(folder, Stopwatch()) as running:
        yield running


def _run(store: Running, work: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetune_operator.cli", "run", *map(str, arguments), f"--work-dir={work}"]
    environment = {**os.environ, **store.access.s3}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _assert_verified(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    assert re.search(r"^verified: \d+ files, .*, all as in the manifest$", done.stdout, re.MULTILINE)


def test_an_adapter_is_trained_without_a_gpu(store: Running, tmp_path: Path) -> None:
    done = _run(store, tmp_path, "examples/cpu.yaml")
    _assert_verified(done)
    assert "s3://outputs/cpu-only/run-1/adapter" in done.stdout


def test_a_folder_stands_for_a_volume(store: Running, folder: Path, tmp_path: Path) -> None:
    done = _run(store, tmp_path, "examples/pvc.yaml", f"--claims={folder / 'claims'}")
    _assert_verified(done)
    assert (folder / "claims" / "finetuning" / "outputs" / "on-a-volume" / "run-1" / "manifest.json").is_file()
