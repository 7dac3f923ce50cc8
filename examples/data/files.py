"""The data sets as files, in the formats that people have them in."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

from examples.data import records
from examples.data.records import Record


def json_lines(path: Path, rows: list[Record]) -> None:
    """Write one object a line."""
    path.write_text(_lines(rows), encoding="utf-8")


def json_lines_zst(path: Path, rows: list[Record]) -> None:
    """Write one object a line, compressed."""
    import pyarrow

    with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(_lines(rows).encode())


def json_array(path: Path, rows: list[Record]) -> None:
    """Write one list of objects."""
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def table(path: Path, rows: list[Record]) -> None:
    """Write CSV with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def parquet(path: Path, rows: list[Record]) -> None:
    """Write a Parquet file."""
    import pyarrow
    from pyarrow import parquet as format_

    format_.write_table(pyarrow.Table.from_pylist(rows), path)


FILES: dict[str, tuple[Callable[[Path, list[Record]], None], Callable[[], list[Record]]]] = {
    "tickets.jsonl": (json_lines, records.routed),
    "tickets-as-json.jsonl": (json_lines, records.as_json),
    "preferences.jsonl": (json_lines, records.preferences),
    "completions/january.csv": (table, lambda: records.completions()[:100]),
    "completions/february.jsonl.zst": (json_lines_zst, lambda: records.completions()[100:]),
    "handbook.jsonl": (json_lines, records.handbook),
    "support/calls.jsonl.zst": (json_lines_zst, records.tool_calls),
    "small-talk.json": (json_array, records.small_talk),
    "faq.csv": (table, records.questions_and_answers),
    "checked-by-hand.parquet": (parquet, records.checked),
}
"""Each file's name below the bucket, how it is written, and what is in it."""


def write_all(folder: Path) -> list[Path]:
    """Write every file below a folder, and return their paths."""
    for name, (write, rows) in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, rows())
    return [folder / name for name in FILES]


def _lines(rows: list[Record]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
