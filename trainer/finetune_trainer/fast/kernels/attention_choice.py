"""Which attention kernels are taken on a card: what is fastest there, by time and not by name."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from finetune_trainer.fast.kernels.attention_backends import Backend, Cudnn, Flash, Plain
from finetune_trainer.fast.kernels.attention_cute import Cute
from finetune_trainer.fast.kernels.layout import Layout
from finetune_trainer.logs import log

CUDNN, FLASH, FA4 = "cuDNN", "flash", "FA4"
KINDS: dict[str, Callable[[Layout], Backend]] = {CUDNN: Cudnn, FLASH: Flash, FA4: Cute}
_AT_ONCE = (CUDNN, FLASH)
"""What torch has; for others see `attention_later`."""
_ONE_LENGTH = (CUDNN,)
"""What computes documents of one length alone, without a window."""
_TRIES = 5
_SAME = 1e-2
"""How far two kernels' results may be apart, as a share of their norm."""
_Key = tuple[int, int, torch.dtype]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model asks of attention, and in what pieces."""

    tokens: int
    """Of a micro-batch."""
    length: int
    """Of the longest document."""
    heads: int
    key_heads: int
    width: int
    """Of a head."""
    dtype: torch.dtype
    window: int = 0
    """How many tokens one sees in the layers that have a window; 0 if there are none."""

    @property
    def key(self) -> _Key:
        """What kernels are chosen by."""
        return self.heads, self.width, self.dtype

    @property
    def equal(self) -> tuple[int, ...]:
        """Lengths of documents that are all as long."""
        return (self.length,) * max(self.tokens // self.length, 1)

    @property
    def short(self) -> tuple[int, ...]:
        """As many tokens in documents of an eighth."""
        length = max(self.length // 8, 1)
        return (length,) * (sum(self.equal) // length)


fastest: dict[_Key, str] = {}
"""What is taken for documents of one length."""
fastest_of_any: dict[_Key, str] = {}
"""What is taken for others, and with windows."""


def chosen(layout: Layout, query: torch.Tensor, window: int) -> Backend:
    """Return the backend for a pass."""
    if query.device.type != "cuda":
        return Plain(layout)
    _, heads, width = query.shape
    whole = not window or window >= layout.longest
    known = fastest if layout.equal and whole else fastest_of_any
    return KINDS[known.get((heads, width, query.dtype), FLASH)](layout)


def measure(shape: Shape) -> None:
    """Settle by time, forward and backward, what is taken on this card of what torch has."""
    if shape.key not in fastest:
        _settle(shape, _AT_ONCE)


def reconsider(shape: Shape, newcomer: str) -> None:
    """Settle it again, with another kind of kernels beside what was taken; what computes something else is not."""
    if apart := _differs(shape, newcomer):
        log.warning("attention: %s differs by %.1f%% from %s, and is not taken", newcomer, 100 * apart, FLASH)
        return
    _settle(shape, (*_AT_ONCE, newcomer))


def _settle(shape: Shape, kinds: Iterable[str]) -> None:
    inputs = random_inputs(shape, sum(shape.equal))
    fastest[shape.key] = _fastest(kinds, shape.equal, inputs)
    fastest_of_any[shape.key] = _fastest([name for name in kinds if name not in _ONE_LENGTH], shape.short, inputs)


def _fastest(kinds: Iterable[str], lengths: tuple[int, ...], inputs: tuple[torch.Tensor, ...]) -> str:
    layout = layout_of(lengths)
    query, key, value = (each[: sum(lengths)] for each in inputs)
    found = {name: _seconds(KINDS[name](layout), query, key, value) for name in kinds}
    known = {name: seconds for name, seconds in found.items() if seconds is not None}
    said = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in known.items())
    log.info("attention of %d documents of %d tokens, a layer: %s", len(lengths), layout.longest, said)
    return min(known, key=known.__getitem__, default=FLASH)


def _differs(shape: Shape, newcomer: str) -> float | None:
    """Return how far a kind's results are from the flash kernels', if that is too far."""
    layout, inputs = layout_of(shape.short), random_inputs(shape, sum(shape.short))
    usual, other = (attended(KINDS[name](layout), *inputs) for name in (FLASH, newcomer))
    apart = [float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(other, usual, strict=True)]
    return None if max(apart) <= _SAME else max(apart)


def layout_of(lengths: tuple[int, ...]) -> Layout:
    """Return the layout of documents of some lengths, on the GPU."""
    return Layout(torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32), lengths)


def random_inputs(shape: Shape, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return random query, key and value, from numbers of their own: those of the run stay untouched."""
    random = torch.Generator("cuda").manual_seed(shape.heads)
    query, key, value = (
        torch.randn(tokens, heads, shape.width, generator=random, device="cuda", dtype=shape.dtype)
        for heads in (shape.heads, shape.key_heads, shape.key_heads)
    )
    return query, key, value


def attended(
    backend: Backend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, window: int = 0
) -> tuple[torch.Tensor, ...]:
    """Return a backend's result and the gradients, where that of the result is the result itself."""
    scale = query.shape[-1] ** -0.5
    out, sums = backend.forward(query, key, value, scale=scale, window=window)
    return out, *backend.backward(out, query, key, value, out, sums, scale=scale, window=window)


def _seconds(backend: Backend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> float | None:
    try:
        times = [_once(backend, query, key, value) for _ in range(_TRIES + 2)]
    except RuntimeError:  # no kernel for these shapes
        return None
    return statistics.median(times[2:])


def _once(backend: Backend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    attended(backend, query, key, value)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
