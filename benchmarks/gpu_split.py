"""Where the time of a step on the GPU goes, by kind of kernel."""

from __future__ import annotations

from typing import Any

KINDS = ("GEMM", "attention", "elementwise", "loss", "dequantisation", "other", "host")
_LONGEST = 40


def split_of(profiled: Any) -> dict[str, Any]:
    """Return milliseconds by kind, `host` for when no kernel ran, and the kernels that took longest."""
    kinds = dict.fromkeys(KINDS, 0.0)
    spans: list[tuple[float, float]] = []
    kernels: dict[str, tuple[float, int]] = {}
    for event in profiled.events():
        if "cuda" not in str(event.device_type).lower():
            continue
        begin, end = event.time_range.start, event.time_range.end
        spans.append((begin, end))
        spent, count = kernels.get(event.name, (0.0, 0))
        kernels[event.name] = (spent + (end - begin) / 1e3, count + 1)
        kinds[kind_of(event.name)] += (end - begin) / 1e3
    kinds["host"] = _between(spans) / 1e3
    longest = sorted(((ms, count, name[:110]) for name, (ms, count) in kernels.items()), reverse=True)[:_LONGEST]
    return {
        **{kind: round(ms, 1) for kind, ms in kinds.items()},
        "kernels": len(spans),
        "longest": [[round(ms, 2), count, name] for ms, count, name in longest],
    }


def _between(spans: list[tuple[float, float]]) -> float:
    """Return how long nothing ran between the first kernel and the last."""
    idle, until = 0.0, None
    for begin, end in sorted(spans):
        if until is not None and begin > until:
            idle += begin - until
        until = end if until is None else max(until, end)
    return idle


def kind_of(kernel: str) -> str:
    """Return what a kernel is for."""
    name = kernel.lower()
    if any(part in name for part in ("fmha", "flash", "cudnn", "sdpa", "flex")):
        return "attention"
    if any(part in name for part in ("nvjet", "gemm", "cutlass", "splitk", "cublas")):
        return "GEMM"
    if name == "_walk" or any(part in name for part in ("cross_entropy", "cce", "_softmax")):
        return "loss"
    if "dequant" in name:
        return "dequantisation"
    if name.startswith(("triton_", "_")) or "elementwise" in name or "rms" in name or "rope" in name:
        return "elementwise"
    return "other"
