"""Data sets for tests, as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
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
