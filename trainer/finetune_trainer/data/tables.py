"""CSV and Parquet: rows as the same dicts that lines of JSON are.

A table has a cell where an object may have no field: nulls of Parquet are left out, at any depth. Cells of CSV are
text; where a format wants a list (messages, tools) it takes its JSON.
"""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_trainer.data.compression import is_compressed, open_plain, start_of
from finetune_trainer.data.json_files import LONGEST
from finetune_trainer.data.problems import BadExampleError, Problems
from finetune_trainer.data.read import UTF8_BOM, DataFile, Record

ROWS_AT_ONCE = 256
_DELIMITERS = (",", "\t", ";")


def csv_rows(file: DataFile, problems: Problems) -> Iterator[Record]:
    """Yield the rows below the header. Raises BadExampleError where the table itself is broken."""
    csv.field_size_limit(LONGEST)
    with open_plain(file.path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=_delimiter(start_of(file.path)), strict=True)
        header = _checked(next(_rows(reader), (1, []))[1])
        for line, row in _rows(reader):
            where = f"{file.name} line {line}"
            if len(row) == len(header):
                yield Record(where, dict(zip(header, row, strict=True)))
            elif row:
                problems.add(where, f"has {len(row)} cells, the header has {len(header)}: quote cells with commas")


def _rows(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the line that it begins on: cells may hold line breaks."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise BadExampleError(
                f"is not CSV: {error}; a quote inside a cell is written twice, and one that opens a cell closes it",
                at=f"line {line}",
            ) from error
        except UnicodeDecodeError as error:
            raise BadExampleError(
                f"is not UTF-8 near line {line} (byte 0x{error.object[error.start]:02x}; Latin-1 perhaps): "
                "convert it (iconv -f LATIN1 -t UTF-8)"
            ) from error
        if row is None:
            return
        yield line, row


def _delimiter(start: bytes) -> str:
    """Return the delimiter that the header has most of: spreadsheets of many countries write semicolons."""
    header = start.removeprefix(UTF8_BOM).split(b"\n", 1)[0].decode(errors="replace")
    return max(_DELIMITERS, key=header.count)


def _checked(header: list[str]) -> list[str]:
    names = [name.strip() for name in header]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadExampleError(f"the header has {twice!r} twice: rename one", at="line 1")
    return names


def parquet_rows(file: DataFile, problems: Problems) -> Iterator[Record]:
    """Yield the rows. Raises BadExampleError if the file is no Parquet that can be read."""
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    with _seekable(file.path) as path:
        try:
            with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as table:
                for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, use_threads=False):
                    for row in batch.to_pylist():
                        number += 1
                        yield Record(f"{file.name} row {number}", _without_nulls(row))
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None):
                raise
            at = f"after row {number}" if number else ""
            raise BadExampleError("is damaged Parquet or was cut off: upload it again", at=at) from error


@contextmanager
def _seekable(path: Path) -> Iterator[Path]:
    """Yield the file, decompressed beside it if it is compressed as a whole: Parquet is read from its end."""
    if not is_compressed(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".parquet") as plain:
        with open_plain(path) as packed:
            shutil.copyfileobj(packed, plain, 1 << 20)
        plain.flush()
        yield Path(plain.name)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
