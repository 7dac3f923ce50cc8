"""Tokens on disk: a spool of uncut examples while the lengths are not known, then the shards that train reads.

A shard is Parquet with the columns `input_ids` and `labels`, of about SHARD_TOKENS tokens (64 MB before compression).
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

_TOKENS = pa.list_(pa.int32())
_SCHEMA = pa.schema([("input_ids", _TOKENS), ("labels", _TOKENS)])


class Spool:
    """Uncut examples of one part of the split, appended in reading order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = pq.ParquetWriter(path, _SCHEMA, compression="zstd", compression_level=1)

    def append(self, examples: Sequence[Encoded]) -> None:
        """Write examples."""
        if not examples:
            return
        columns = [pa.array([getattr(one, name) for one in examples], type=_TOKENS) for name in _SCHEMA.names]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA))

    def close(self) -> Path:
        """Finish the file and return it."""
        self._writer.close()
        return self._path


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
    """Cut each row at the end, and keep the rows that still teach something."""
    ids, labels = batch.column("input_ids"), batch.column("labels")
    lengths = np.diff(ids.offsets.to_numpy())
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    values, targets = ids.flatten().to_numpy(), labels.flatten().to_numpy()
    trained = np.bincount(rows[(places < longest) & (targets != IGNORED)], minlength=len(lengths))
    kept = (places < longest) & (trained[rows] > 0)
    sizes = np.minimum(lengths, longest)[trained > 0]
    cut.rows += len(sizes)
    cut.tokens += int(sizes.sum())
    cut.loss_tokens += int(trained.sum())
    cut.truncated += int((lengths > longest).sum())
    cut.dropped += int((trained == 0).sum())
    return pa.Table.from_arrays([_lists(values[kept], sizes), _lists(targets[kept], sizes)], schema=_SCHEMA)


def _lists(values: Any, sizes: Any) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, type=pa.int32()))


def _write(tables: list[pa.Table], folder: Path, part: Part, *, number: int) -> LocalShard:
    table = pa.concat_tables(tables)
    name = f"{part}-{number:05d}.parquet"
    pq.write_table(table, folder / name, compression="zstd", row_group_size=ROWS_AT_ONCE)
    return LocalShard(part=part, name=name, rows=table.num_rows, tokens=_tokens(table))


def _tokens(table: pa.Table) -> int:
    return sum(len(chunk.values) for chunk in table.column("input_ids").chunks)
