"""What the CPU is good at."""

from __future__ import annotations

from pathlib import Path

_UNITS = {"amx_bf16", "bf16"}
"""x86's AMX, Arm's BFMMLA. AVX-512's instruction is not enough: 0.57 of float32's speed was measured with it."""


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this machine's CPU has units for products of bfloat16 matrices."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return not _UNITS.isdisjoint(next(flags, ()))
