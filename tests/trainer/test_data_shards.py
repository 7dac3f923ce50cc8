"""Shards: examples cut at the end, those that teach nothing left out, files of bounded size and equal bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from finetune_trainer.data import shards
from finetune_trainer.data.shards import Cut, LocalShard, Spool, write_shards
from finetune_trainer.data.tokenize import Encoded

LONGEST = 4


def write(folder: Path, examples: list[Encoded]) -> tuple[list[LocalShard], Cut]:
    """Spool the examples in two batches and write the shards."""
    folder.mkdir(exist_ok=True)
    spool = Spool(folder / "spool")
    spool.append(examples[:1])
    spool.append([])
    spool.append(examples[1:])
    return write_shards(spool.close(), folder, part="train", longest=LONGEST)


EXAMPLES = [
    Encoded([1, 2, 3], [-100, 2, 3]),
    Encoded([1, 2, 3, 4, 5, 6], [-100, -100, 3, 4, 5, 6]),  # cut
    Encoded([1, 2, 3, 4, 5], [-100, -100, -100, -100, 5]),  # nothing remains
    Encoded([7, 8, 9, 10], [-100, -100, -100, 10]),  # just fits
]


def test_cutting_keeps_the_beginning_and_drops_what_teaches_nothing(tmp_path: Path) -> None:
    written, cut = write(tmp_path, EXAMPLES)
    assert [(shard.name, shard.rows, shard.tokens) for shard in written] == [("train-00000.parquet", 3, 11)]
    assert pq.read_table(tmp_path / "train-00000.parquet").to_pydict() == {
        "input_ids": [[1, 2, 3], [1, 2, 3, 4], [7, 8, 9, 10]],
        "labels": [[-100, 2, 3], [-100, -100, 3, 4], [-100, -100, -100, 10]],
    }
    assert cut == Cut(rows=3, tokens=11, loss_tokens=5, truncated=2, dropped=1)


def test_a_part_of_which_nothing_remains_has_no_shard(tmp_path: Path) -> None:
    written, cut = write(tmp_path, [EXAMPLES[2]])
    assert (written, cut.rows, cut.dropped) == ([], 0, 1)


def test_shards_are_of_bounded_size_and_lose_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_TOKENS", 50)
    monkeypatch.setattr(shards, "ROWS_AT_ONCE", 10)
    written, cut = write(tmp_path, [Encoded([n, n, n], [n, n, n]) for n in range(100)])
    assert all(shard.tokens <= 50 + 10 * 3 for shard in written)
    assert [row for shard in written for row in pq.read_table(tmp_path / shard.name)["input_ids"].to_pylist()] == [
        [n, n, n] for n in range(100)
    ]
    assert cut.rows == sum(shard.rows for shard in written) == 100


def test_equal_data_gives_equal_bytes(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        write(tmp_path / name, EXAMPLES)
        digests.add(hashlib.sha256((tmp_path / name / "train-00000.parquet").read_bytes()).hexdigest())
    assert len(digests) == 1
