"""GPUs that are known by name, with the memory that NVML reports of each: what the label nvidia.com/gpu.memory says.

The names are those of the label nvidia.com/gpu.product, as NVIDIA-A100-SXM4-80GB: words between dashes. A slice of a
card (MIG) is none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU."""

    name: str
    """As people call it."""
    words: frozenset[str]
    """Words of its product's name that no other kind has all of."""
    memory_bytes: int
    fp8: bool
    """Whether it multiplies FP8: compute capability 8.9 and above."""


def _gpu(name: str, mebibytes: int, *words: str, fp8: bool = False) -> Gpu:
    return Gpu(name, frozenset(words), mebibytes * _MIB, fp8)


KNOWN: tuple[Gpu, ...] = (
    _gpu("T4", 15360, "T4"),
    _gpu("V100 16GB", 16384, "V100", "16GB"),
    _gpu("A10", 23028, "A10"),
    _gpu("A10G", 23028, "A10G"),
    _gpu("L4", 23034, "L4", fp8=True),
    _gpu("V100 32GB", 32768, "V100", "32GB"),
    _gpu("A100 40GB", 40960, "A100", "40GB"),
    _gpu("A40", 46068, "A40"),
    _gpu("L40S", 46068, "L40S", fp8=True),
    _gpu("RTX A6000", 49140, "RTX", "A6000"),
    _gpu("H100 80GB", 81559, "H100", fp8=True),
    _gpu("A100 80GB", 81920, "A100", "80GB"),
    _gpu("H100 NVL", 95830, "H100", "NVL", fp8=True),
    _gpu("H200", 143771, "H200", fp8=True),
    _gpu("B200", 183359, "B200", fp8=True),
)
"""Smallest first."""


def known_gpu(product: str) -> Gpu | None:
    """Return the kind of a product, by the most words of it; None for one that is not known."""
    words = set(product.upper().replace("_", "-").replace(" ", "-").split("-"))
    fitting = [gpu for gpu in KNOWN if gpu.words <= words] if "MIG" not in words else []
    return max(fitting, key=lambda gpu: len(gpu.words), default=None)


def smallest_with(memory_bytes: float) -> Gpu | None:
    """Return the smallest kind that has so much memory."""
    return next((gpu for gpu in KNOWN if gpu.memory_bytes >= memory_bytes), None)
