"""Numbers as long as they mean something: a termination message holds 2000 bytes."""

from __future__ import annotations

DIGITS = 6


def significant(value: float, digits: int = DIGITS) -> float:
    """Return a number with so many significant digits."""
    return float(f"{value:.{digits}g}")
