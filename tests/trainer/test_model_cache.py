"""The cache that jobs share: what is removed for room, and what never is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune_contract.run_config import Use
from finetune_trainer.fetch import fetch_model
from finetune_trainer.model import cache as model_cache
from finetune_trainer.model.cache import MARKER, hold, make_room
from finetune_trainer.storage import open_store
from finetune_trainer.storage.folders import upload_folder
from tests.support.models import tiny_llama
from tests.support.preparing import machine, run_config

_HOLD = """
import pathlib, sys
from finetune_trainer.model.cache import hold
hold(pathlib.Path(sys.argv[1]))
print(1, flush=True)
sys.stdin.read()
"""


def a_model(root: Path, name: str, *, used: float) -> Path:
    """Make a complete folder of 1000 bytes that was last used at a time, in seconds."""
    folder = root / name
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x" * 998)
    (folder / MARKER).write_text("{}")
    os.utime(folder / MARKER, (used, used))
    return folder


def models(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


@contextmanager
def used_by_a_job(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Have another process use a folder until the end, or until it is killed."""
    command = [sys.executable, "-c", _HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("needed", "limit", "left"),
    [(1000, 4000, ["a", "b", "c"]), (1000, 3999, ["b", "c"]), (2500, 4000, ["c"]), (9000, 4000, [])],
    ids=["fits", "one byte too much", "two must go", "larger than the cache"],
)
def test_what_was_used_longest_ago_goes_first(tmp_path: Path, needed: int, limit: int, left: list[str]) -> None:
    for name, used in (("a", 1), ("c", 3), ("b", 2)):
        a_model(tmp_path, name, used=used)
    make_room(tmp_path, needed=needed, limit=limit)
    assert models(tmp_path) == left


def test_what_a_job_uses_stays_until_the_job_ends_or_is_killed(tmp_path: Path) -> None:
    old = a_model(tmp_path, "old", used=1)
    a_model(tmp_path, "new", used=2)
    with used_by_a_job(old) as job:
        os.utime(old / MARKER, (1, 1))
        make_room(tmp_path, needed=0, limit=1000)
        assert models(tmp_path) == ["old"]
        make_room(tmp_path, needed=0, limit=0)
        assert models(tmp_path) == ["old"]
        job.kill()
        job.wait()
        make_room(tmp_path, needed=0, limit=0)
    assert models(tmp_path) == []


def test_using_a_model_makes_it_the_last_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_cache, "_held", held := {})
    old = a_model(tmp_path, "old", used=1)
    a_model(tmp_path, "new", used=2)
    hold(old)
    os.close(held[old])  # the job that used it has ended
    make_room(tmp_path, needed=0, limit=1000)
    assert models(tmp_path) == ["old"]


def test_what_a_killed_job_had_begun_to_fetch_goes_too(tmp_path: Path) -> None:
    begun = tmp_path / "a.partial"
    begun.mkdir()
    (begun / "model.safetensors").write_bytes(b"x" * 1000)
    with used_by_a_job(tmp_path / "a"):
        make_room(tmp_path, needed=0, limit=0)
        assert models(tmp_path) == ["a.partial"]
    make_room(tmp_path, needed=0, limit=0)
    assert models(tmp_path) == []


def test_a_model_that_is_fetched_takes_the_room_of_an_unused_one(bucket: str, tmp_path: Path) -> None:
    upload_folder(open_store(bucket, Use.MODEL), tiny_llama(tmp_path / "model"), f"{bucket}/model")
    env = machine(tmp_path)
    (env.cache / "models").mkdir(parents=True)
    a_model(env.cache / "models", "unused", used=1)
    config = run_config("file:///unused", model=f"{bucket}/model").model_copy(update={"cache_bytes": 1000})
    fetched = fetch_model(config, env, weights=True)
    assert models(env.cache / "models") == [fetched.path.name]
