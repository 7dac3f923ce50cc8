"""Tokens on disk: a spool of uncut examples while the lengths are not known, then the shards that train reads.

A shard is Parquet with the columns `input_ids` and `labels`, for preferences `rejected_ids` and `rejected_labels` too,
of about SHARD_TOKENS tokens (64 MB before compression).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune_trainer.data.tokenize import IGNORED, Encoded

SHARD_TOKENS = 8 << 20
ROWS_AT_ONCE = 4096

Part = Literal["train", "validation"]

SINGLE = ("input_ids", "labels")
PAIR = (*SINGLE, "rejected_ids", "rejected_labels")
_TOKENS = pa.list_(pa.int32())


class Spool:
    """Uncut examples of one part of the split, appended in reading order. The first says whether they are pairs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: pq.ParquetWriter | None = None

    def append(self, examples: Sequence[Encoded]) -> None:
        """Write examples."""
        if not examples:
            return
        file = self._open(PAIR if examples[0].rejected_ids else SINGLE)
        columns = [pa.array([getattr(one, name) for one in examples], type=_TOKENS) for name in file.schema.names]
        file.write_table(pa.Table.from_arrays(columns, schema=file.schema))

    def close(self) -> Path:
        """Finish the file and return it."""
        self._open(SINGLE).close()
        return self._path

    def _open(self, columns: tuple[str, ...]) -> pq.ParquetWriter:
        if self._file is None:
            schema = pa.schema([(name, _TOKENS) for name in columns])
            self._file = pq.ParquetWriter(self._path, schema, compression="zstd", compression_level=1)
        return self._file


@dataclass(slots=True)
class Cut:
    """What cutting one part did."""

    rows: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    truncated: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class LocalShard:
    """A shard before it is stored."""

    part: Part
    name: str
    rows: int
    tokens: int


def write_shards(spool: Path, folder: Path, *, part: Part, longest: int) -> tuple[list[LocalShard], Cut]:
    """Cut the spooled examples to `longest` tokens, drop those without a trained token, and write shards."""
    shards: list[LocalShard] = []
    cut = Cut()
    waiting: list[pa.Table] = []
    for table in _cut_tables(spool, longest, cut):
        waiting.append(table)
        if sum(map(_tokens, waiting)) >= SHARD_TOKENS:
            shards.append(_write(waiting, folder, part, number=len(shards)))
            waiting = []
    if sum(table.num_rows for table in waiting):
        shards.append(_write(waiting, folder, part, number=len(shards)))
    return shards, cut


def _cut_tables(spool: Path, longest: int, cut: Cut) -> Iterator[pa.Table]:
    with pq.ParquetFile(spool) as file:
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            yield _cut(batch, longest, cut)


def _cut(batch: Any, longest: int, cut: Cut) -> pa.Table:
    """Cut each row at the end, and keep the rows that still teach something: each side of a pair something else."""
    names = batch.schema.names
    sides = [
        _Side(batch.column(ids), batch.column(labels), longest)
        for ids, labels in zip(names[::2], names[1::2], strict=True)
    ]
    teaches = np.all([side.trained > 0 for side in sides], axis=0)
    if len(sides) > 1:
        teaches &= ~_equal(sides[0], sides[1])
    cut.rows += int(teaches.sum())
    cut.tokens += sum(int(side.sizes[teaches].sum()) for side in sides)
    cut.loss_tokens += sum(int(side.trained[teaches].sum()) for side in sides)
    cut.truncated += int(np.any([side.lengths > longest for side in sides], axis=0).sum())
    cut.dropped += int((~teaches).sum())
    return pa.Table.from_arrays([column for side in sides for column in side.columns(teaches)], names=names)


class _Side:
    """Tokens and labels of many rows, cut."""

    def __init__(self, ids: Any, labels: Any, longest: int) -> None:
        self.lengths = np.diff(ids.offsets.to_numpy())
        self.sizes = np.minimum(self.lengths, longest)
        self._rows = np.repeat(np.arange(len(self.lengths)), self.lengths)
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._inside = np.arange(len(self._rows)) - np.repeat(self._starts, self.lengths) < longest
        self._ids, self._labels = ids.flatten().to_numpy(), labels.flatten().to_numpy()
        counted = self._rows[self._inside & (self._labels != IGNORED)]
        self.trained = np.bincount(counted, minlength=len(self.lengths))

    def columns(self, kept: Any) -> list[pa.Array]:
        """Return tokens and labels of the rows that are kept."""
        places, sizes = self._inside & kept[self._rows], self.sizes[kept]
        return [_lists(values[places], sizes) for values in (self._ids, self._labels)]

    def row(self, number: Any) -> Any:
        """Return one row's tokens."""
        start = self._starts[number]
        return self._ids[start : start + self.sizes[number]]


def _equal(one: _Side, other: _Side) -> Any:
    """Say of each row whether both sides are equal after cutting."""
    same = one.sizes == other.sizes
    for number in np.flatnonzero(same):
        same[number] = np.array_equal(one.row(number), other.row(number))
    return same


def _lists(values: Any, sizes: Any) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, type=pa.int32()))


def _write(tables: list[pa.Table], folder: Path, part: Part, *, number: int) -> LocalShard:
    table = pa.concat_tables(tables)
    name = f"{part}-{number:05d}.parquet"
    pq.write_table(table, folder / name, compression="zstd", row_group_size=ROWS_AT_ONCE)
    return LocalShard(part=part, name=name, rows=table.num_rows, tokens=_tokens(table))


def _tokens(table: pa.Table) -> int:
    return sum(len(chunk.values) for name in table.column_names[::2] for chunk in table.column(name).chunks)
