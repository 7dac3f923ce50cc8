"""JSON Lines from disk: bytes to objects, with a message for everything else that people store under that name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.data.problems import BadExampleError, Problems

_UTF8_BOM = b"\xef\xbb\xbf"
_LOOK = 4096

# What a file begins with, and what to do about it.
_KNOWN: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe", "is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8)"),
    (b"\x1f\x8b", "is compressed with gzip: decompress it (gunzip)"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: decompress it (unzstd)"),
    (b"PK\x03\x04", "is a zip archive: unpack it"),
    (b"PAR1", "is Parquet: write it as JSON Lines"),
)


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of the data set."""

    path: Path
    name: str
    """As the user knows it."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Record:
    """One line that is a JSON object."""

    where: str
    """File and line."""
    value: dict[str, Any]


def records(files: Iterable[DataFile], problems: Problems) -> Iterator[Record]:
    """Yield the objects of all files in order; lines that are none become problems. Empty lines do not count."""
    for file in files:
        if complaint := _not_text(file.path):
            problems.add(file.name, complaint)
        else:
            yield from _of_file(file, problems)


def _of_file(file: DataFile, problems: Problems) -> Iterator[Record]:
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file.name} line {number}"
            raw = line.removeprefix(_UTF8_BOM) if number == 1 else line
            if not raw.strip():
                continue
            try:
                yield Record(where, _object(raw, first=number == 1))
            except BadExampleError as bad:
                problems.add(where, str(bad))


def _not_text(path: Path) -> str | None:
    """Say what the file is, if it is not text, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(_LOOK)
    for magic, complaint in _KNOWN:
        if start.startswith(magic):
            return complaint
    if b"\0" not in start:
        return None
    if start.count(b"\0") >= len(start) // 3:
        return "looks like UTF-16 or UTF-32, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8)"
    return "is binary: wanted is text, one JSON object a line"


def _object(raw: bytes, *, first: bool) -> dict[str, Any]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise BadExampleError(
            f"is not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start}; Latin-1 perhaps): "
            "convert the file (iconv -f LATIN1 -t UTF-8)"
        ) from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadExampleError(_why_not_json(text, error, first=first)) from error
    if not isinstance(value, dict):
        hint = "the file is one JSON array; write one object a line (jq -c '.[]')" if first else "write {…}"
        raise BadExampleError(f"is JSON but not an object: {hint}")
    return value


def _why_not_json(text: str, error: Exception, *, first: bool) -> str:
    if first and text.strip() in ("[", "{"):
        return "one JSON object must stand on one line; this file spreads it over several (jq -c '.[]' or jq -c .)"
    if not text.endswith("\n"):
        return "the last line ends in the middle of its JSON: the file was cut off, upload it again"
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error.msg} at column {error.colno}"
    return "is not JSON that can be read: nested too deeply"
