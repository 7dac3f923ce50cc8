"""One line of the table: what was measured, what it was before, and what was promised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure."""

    name: str
    before: float | None
    """Of the base model, or where two runs are compared how far apart other runs are."""
    after: float
    promise: str
    """The bound, for people."""
    holds: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def at_least(name: str, *, before: float, after: float, bound: float, base_below: float = 1.0) -> Figure:
    """Return a share that has to rise to a bound, from a base model that does not do the task already."""
    start = f"from under {base_below:.0%} " if base_below < 1 else ""
    return Figure(name, before, after, f"{start}to over {bound:.0%}", before < base_below and after > bound)


def at_most(name: str, *, before: float | None, after: float, bound: float) -> Figure:
    """Return a difference that has to stay within a bound."""
    return Figure(name, before, after, f"at most {bound:g}", after <= bound)


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as columns of text."""
    rows = [("", "before", "after", "promised", ""), *(_cells(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(_line(row, widths) for row in rows)


def _cells(figure: Figure) -> tuple[str, ...]:
    before = "" if figure.before is None else f"{figure.before:.4g}"
    return figure.name, before, f"{figure.after:.4g}", figure.promise, "ok" if figure.holds else "MISSED"


def _line(cells: Iterable[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
