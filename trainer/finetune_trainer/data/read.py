"""Files of every container to records: JSON Lines, one JSON array, CSV, Parquet, each plain or compressed.

A record is the same dict whatever it was stored in. Files are streamed: of a container at most a record or a batch of
rows is in memory. Everything else that people store under these names gets a message that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from finetune_trainer.data.compression import damaged, is_damage, start_of
from finetune_trainer.data.problems import BadExampleError, Problems

UTF8_BOM = b"\xef\xbb\xbf"
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
TABLES = (".csv", ".tsv")
SUFFIXES = (".jsonl", ".ndjson", ".json", *TABLES, ".parquet")

# What a file begins with, and what to do about it.
_KNOWN: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe", "is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8)"),
    (b"PK\x03\x04", "is a zip archive (an Excel file is one, too): unpack it, or save it as CSV"),
    (b"ARROW1", "is an Arrow file: write it as Parquet"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the data: run git lfs pull and upload it again"),
)


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of the data set."""

    path: Path
    name: str
    """As the user knows it."""
    sha256: str
    revision: str | None = None
    """The hub's commit that it is of."""


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object, or one row of a table as such an object."""

    where: str
    """File, and line, item or row."""
    value: dict[str, Any]


Reader = Callable[[DataFile, Problems], Iterator[Record]]


def records(files: Iterable[DataFile], problems: Problems) -> Iterator[Record]:
    """Yield the records of all files in order; what is none becomes a problem."""
    for file in files:
        try:
            yield from _reader(file)(file, problems)
        except BadExampleError as bad:
            problems.add(f"{file.name} {bad.at}".rstrip(), str(bad))
        except Exception as error:
            if not is_damage(error):
                raise
            problems.add(file.name, str(damaged()))


def is_data(name: str) -> bool:
    """Whether a file of this name below a prefix is data; what tools leave beside it (_SUCCESS, state.json) is not."""
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    return not hidden and path.name not in _BESIDE and plain_suffix(name) in SUFFIXES


# What `datasets` and the hub write beside the data.
_BESIDE = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def plain_suffix(name: str) -> str:
    """Return the suffix that tells the container: ".csv" of "data.csv.gz"."""
    suffixes = PurePosixPath(name.lower()).suffixes
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _reader(file: DataFile) -> Reader:
    """Choose by content, which cannot lie; only CSV looks like any other text and is known by its name."""
    start = start_of(file.path)
    if start.startswith(b"PAR1"):
        from finetune_trainer.data.tables import parquet_rows

        return parquet_rows
    if complaint := _not_text(start):
        raise BadExampleError(complaint)
    if plain_suffix(file.name) in TABLES:
        from finetune_trainer.data.tables import csv_rows

        return csv_rows
    from finetune_trainer.data.json_files import array_items, lines

    return array_items if start.removeprefix(UTF8_BOM).lstrip()[:1] == b"[" else lines


def _not_text(start: bytes) -> str | None:
    """Say what the file is, if it is not text, by its first bytes."""
    for magic, complaint in _KNOWN:
        if start.startswith(magic):
            return complaint
    if b"\0" not in start:
        return None
    if start.count(b"\0") >= len(start) // 3:
        return "looks like UTF-16 or UTF-32, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8)"
    return "is binary: wanted is JSON Lines, a JSON array, CSV or Parquet"
