"""What follows from the lines of `benchmarks.multi_gpu`: scaling, the trainer beside the plain script, estimates."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.ranks.cases import KEPT, OURS, PLAIN, SPEED

COLUMNS = (
    "method", "sharing", "GPUs", "data", "side", "tokens/s a GPU", "scaling", "against plain", "against plain-kept",
    "MFU", "peak GB", "estimate GB", "off",
)  # fmt: skip
_SPEED = "tokens_per_second_a_gpu"
Line = dict[str, Any]


def lines_of(files: Iterable[Path]) -> list[Line]:
    """Return the cases' lines of some files; of a case that was run again the last one."""
    found: dict[str, Line] = {}
    for file in files:
        for text in file.read_text(encoding="utf-8").splitlines():
            line: Line = json.loads(text)
            if "case" in line and "error" not in line:
                found[line["case"]] = line
    return list(found.values())


def scaling(line: Line, lines: list[Line]) -> float | None:
    """Return tokens/s a GPU as a share of those on the fewest GPUs: one, or two where the model is shared out."""
    kind, side, method, sharing, number, data = line["case"].split()
    if kind != SPEED:
        return None
    fewest = "x1" if sharing == "ddp" else "x2"
    base = _speed_of(lines, f"{kind} {side} {method} {sharing} {fewest} {data}")
    return None if base is None or number == fewest else line[_SPEED] / base


def against(line: Line, lines: list[Line], side: str) -> float | None:
    """Return the trainer's tokens/s as a multiple of those of the plain script's same case."""
    words = line["case"].split()
    if words[:2] != [SPEED, OURS]:
        return None
    other = _speed_of(lines, " ".join([SPEED, side, *words[2:]]))
    return None if other is None else line[_SPEED] / other


def _speed_of(lines: list[Line], name: str) -> float | None:
    return next((line[_SPEED] for line in lines if line["case"] == name), None)


def table(lines: list[Line]) -> str:
    """Return the speeds as a table in Markdown."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(_row(line, lines) for line in lines if _SPEED in line)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(line: Line, lines: list[Line]) -> tuple[str, ...]:
    _, side, method, sharing, number, data = line["case"].split()
    estimate = line.get("estimate_gb")
    shares = scaling(line, lines), against(line, lines, PLAIN), against(line, lines, KEPT)
    first, *others = ("" if one is None else f"{one:.3f}" for one in shares)
    return (
        method, sharing, number.removeprefix("x"), data, side, f"{line[_SPEED]:,.0f}", first, *others,
        f"{line['mfu']:.1%}" if line.get("mfu") else "", f"{line['peak_gb']:.1f}",
        f"{estimate:.1f}" if estimate else "",
        f"{estimate / line['peak_gb'] - 1:+.1%}" if estimate and line["peak_gb"] else "",
    )  # fmt: skip
