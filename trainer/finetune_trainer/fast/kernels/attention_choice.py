"""Which attention kernels are taken on a card: what is fastest there, by time and not by name."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from importlib.util import find_spec

import torch

from finetune_trainer.fast.kernels.attention_backends import Backend, Cudnn, Flash, Plain
from finetune_trainer.fast.kernels.layout import Layout
from finetune_trainer.logs import log

_TRIES = 5
KINDS: dict[str, Callable[[Layout], Backend]] = {"cuDNN": Cudnn, "flash": Flash}
_NEWER = "FA3"
fastest: dict[tuple[int, int, torch.dtype], str] = {}
"""What is taken for documents of one length, by heads and their width."""


def chosen(layout: Layout, query: torch.Tensor, window: int) -> Backend:
    """Return the backend for a pass."""
    if query.device.type != "cuda":
        return Plain(layout)
    _, heads, width = query.shape
    whole = not window or window >= layout.longest
    if layout.equal and whole and fastest.get((heads, width, query.dtype)) == "cuDNN":
        return Cudnn(layout)
    return Flash(layout)


def measure(*, tokens: int, length: int, heads: int, key_heads: int, width: int, dtype: torch.dtype) -> None:
    """Settle by time, forward and backward, what is taken on this card: for documents of one length, and for others.

    Newer flash kernels take the place of torch's in the whole process, where they are installed and faster.
    """
    if (heads, width, dtype) in fastest:
        return
    one = _random_layout((length,) * max(tokens // length, 1))
    others = _random_layout((max(length // 8, 1),) * (8 * max(tokens // length, 1)))
    inputs = [_random(tokens=sum(one.lengths), heads=many, width=width, dtype=dtype) for many in (heads, key_heads)]
    query, key, value = inputs[0], inputs[1], inputs[1].roll(1, 0)
    found = {name: _seconds(kind(one), query, key, value) for name, kind in KINDS.items()}
    usual = _seconds(Flash(others), *(each[: sum(others.lengths)] for each in (query, key, value)))
    if usual is not None and _newer_flash():
        newer = _seconds(Flash(others), *(each[: sum(others.lengths)] for each in (query, key, value)))
        log.info("flash attention of documents of %d tokens: %s s, %s %s s", others.longest, usual, _NEWER, newer)
        if newer is None or newer >= usual:
            _usual_flash()
        else:
            found["flash"] = _seconds(Flash(one), query, key, value)
    known = {name: seconds for name, seconds in found.items() if seconds is not None}
    fastest[heads, width, dtype] = min(known, key=known.__getitem__, default="flash")
    said = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in known.items())
    log.info("attention of %d documents of %d tokens, a layer: %s", len(one.lengths), length, said)


def _newer_flash() -> bool:
    """Have newer flash kernels take the place of torch's, if they are installed; return whether they do."""
    if find_spec("flash_attn_interface") is None:
        return False
    try:
        from torch.nn.attention import activate_flash_attention_impl

        activate_flash_attention_impl(_NEWER)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        log.warning("flash_attn_interface is installed and cannot be used: %s", error)
        return False
    return True


def _usual_flash() -> None:
    from torch.nn.attention import restore_flash_attention_impl

    restore_flash_attention_impl()


def _random_layout(lengths: tuple[int, ...]) -> Layout:
    starts = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)
    return Layout(starts, lengths)


def _random(*, tokens: int, heads: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    random = torch.Generator("cuda").manual_seed(heads)
    return torch.randn(tokens, heads, width, generator=random, device="cuda", dtype=dtype)


def _seconds(backend: Backend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> float | None:
    try:
        times = [_once(backend, query, key, value) for _ in range(_TRIES + 2)]
    except RuntimeError:  # no kernel for these shapes
        return None
    return statistics.median(times[2:])


def _once(backend: Backend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> float:
    scale = query.shape[-1] ** -0.5
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    out, sums = backend.forward(query, key, value, scale=scale, window=0)
    backend.backward(out, query, key, value, out, sums, scale=scale, window=0)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
