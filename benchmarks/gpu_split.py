"""Where the time of a step on the GPU goes, by kind of kernel."""

from __future__ import annotations

from typing import Any

KINDS = ("GEMM", "attention", "elementwise", "loss", "dequantisation", "quantisation", "other", "host")
_LONGEST = 40
_PARTS = {
    "attention": ("fmha", "flash", "cudnn", "sdpa", "flex"),
    "GEMM": ("nvjet", "gemm", "cutlass", "splitk", "cublas"),
    "loss": ("cross_entropy", "cce", "_softmax"),
    "dequantisation": ("dequant",),
    "quantisation": ("_quantise", "_turn"),
    "elementwise": ("elementwise", "rms", "rope"),
}
"""Parts of kernels' names by kind; the first that is found counts."""


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
    if name == "_walk":
        return "loss"
    for kind, parts in _PARTS.items():
        if any(part in name for part in parts):
            return kind
    return "elementwise" if name.startswith(("triton_", "_")) else "other"
