"""Kubernetes quantities as numbers: 80Gi is 85899345920, 500m is one half."""

from __future__ import annotations

from decimal import Decimal

_UNITS: dict[str, Decimal] = {
    "m": Decimal("0.001"),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", start=1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)},
}


def quantity(text: str | int) -> Decimal:
    """Return a quantity that the schema has admitted as a number."""
    number = str(text).rstrip("".join(set("".join(_UNITS))))
    return Decimal(number) * _UNITS.get(str(text)[len(number) :], Decimal(1))
