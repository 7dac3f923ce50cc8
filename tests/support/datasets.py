"""Data sets for tests, as lines of JSON."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def chat(question: str, answer: str, *, system: str | None = None) -> dict[str, Any]:
    """Return one conversation of the format `messages`."""
    first = [{"role": "system", "content": system}] if system else []
    return {"messages": [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def chats(count: int) -> list[dict[str, Any]]:
    """Return different conversations of different lengths."""
    return [
        chat(f"What is {n} times {n + 1}?", f"{n} times {n + 1} is {n * (n + 1)}." + " Quite so." * (n % 7))
        for n in range(count)
    ]


def lines(records: Iterable[Any]) -> bytes:
    """Return JSON Lines."""
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records).encode()


def write_lines(path: Path, records: Iterable[Any]) -> Path:
    """Write JSON Lines to a file, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lines(records))
    return path


def array(records: Iterable[Any]) -> bytes:
    """Return one JSON array over several lines."""
    return json.dumps(list(records), ensure_ascii=False, indent=1).encode()


def table(records: Iterable[dict[str, Any]], *, delimiter: str = ",") -> bytes:
    """Return CSV, its header from the first record; what is no text stands as JSON in its cell."""
    rows = list(records)
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in row.values()])
    return out.getvalue().encode()


def parquet(records: Iterable[dict[str, Any]]) -> bytes:
    """Return Parquet."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(records)), out)
    return out.getvalue()


def zstd(content: bytes) -> bytes:
    """Return the content compressed with zstd."""
    import pyarrow as pa

    packed: bytes = pa.Codec("zstd").compress(content, asbytes=True)
    return packed


CONTAINERS: dict[str, Callable[[Iterable[dict[str, Any]]], bytes]] = {
    ".jsonl": lines,
    ".json": array,
    ".csv": table,
    ".parquet": parquet,
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}
