"""The adapters as passes compute with them: copies in the base's number format, written once a step.

Cast where they are used, each matrix is a kernel of its own in every layer and pass, and so is each gradient's way back
and its sum: nearly half of all kernels of a step. Here all are cast at once. The gradients of a pass are added up in
float32, all in one tensor, and reach the parameters when the step's passes are done: once, as autograd hands them over,
so that whoever waits for them there (DistributedDataParallel) sees them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

LOW = "_fast_low"
"""Where a layer holds its copies: A (rank, inputs) and B (outputs, rank), the scale multiplied into B."""
ADAPTER = "default"


def copied(layer: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Have a layer hold copies of its adapter's matrices, and return them."""
    a, b = _masters(layer)
    scaled = b.detach() * layer.scaling[ADAPTER]
    found = _leaf(a.detach(), dtype), _leaf(scaled, dtype)
    layer.__dict__[LOW] = found
    return found


def _masters(layer: Any) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _leaf(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype, copy=True).contiguous().requires_grad_()


class Copies:
    """The copies of all layers that hold some."""

    def __init__(self, layers: Iterable[Any]) -> None:
        """Of a parameter that is not trained the copy's gradient is dropped."""
        held = [layer for layer in layers if LOW in layer.__dict__]
        self._first = [(_masters(layer)[0], layer.__dict__[LOW][0]) for layer in held]
        self._second = [(_masters(layer)[1], layer.__dict__[LOW][1]) for layer in held]
        self._scales = [float(layer.scaling[ADAPTER]) for layer in held]
        self._sum: torch.Tensor | None = None

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Compute passes inside; afterwards the parameters have their gradients."""
        self._write()
        try:
            yield
            self.collect()
            self._hand_over()
        finally:
            self._sum = None
            for _, copy in (*self._first, *self._second):
                copy.grad = None

    @torch.no_grad()
    def _write(self) -> None:
        first = [master.detach() for master, _ in self._first]
        second = [master.detach() for master, _ in self._second]
        if any(scale != 1 for scale in self._scales):
            second = list(torch._foreach_mul(second, self._scales))
        if first:
            torch._foreach_copy_([copy for _, copy in (*self._first, *self._second)], [*first, *second])

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of the passes since the last time to those before."""
        copies = [copy for _, copy in (*self._first, *self._second)]
        if all(copy.grad is None for copy in copies):
            return
        sizes = [copy.numel() for copy in copies]
        found = torch.zeros(sum(sizes), dtype=torch.float32, device=copies[0].device)
        pairs = [
            (part.view_as(copy), copy.grad)
            for part, copy in zip(torch.split(found, sizes), copies, strict=True)
            if copy.grad is not None  # a layer that a pass has left out: an expert
        ]
        torch._foreach_copy_([part for part, _ in pairs], [grad for _, grad in pairs])
        for copy in copies:
            copy.grad = None
        self._sum = found if self._sum is None else self._sum.add_(found)

    def _hand_over(self) -> None:
        if self._sum is None:
            return
        masters = [master for master, _ in (*self._first, *self._second)]
        parts = [
            part.view_as(master)
            for part, master in zip(torch.split(self._sum, [one.numel() for one in masters]), masters, strict=True)
        ]
        second = parts[len(self._first) :]
        if any(scale != 1 for scale in self._scales):
            torch._foreach_mul_(second, self._scales)
        parts = [one.to(master.dtype) for one, master in zip(parts, masters, strict=True)]
        handed: torch.Tensor = _Handed.apply(parts, *masters)  # type: ignore[no-untyped-call]
        del parts, second
        self._sum = None
        handed.backward()  # type: ignore[no-untyped-call]


class _Handed(torch.autograd.Function):
    """Has the backward pass of nothing give parameters their gradients."""

    @staticmethod
    def forward(ctx: Any, gradients: list[torch.Tensor], *masters: torch.Tensor) -> torch.Tensor:
        """Keep the gradients."""
        ctx.gradients = gradients
        return masters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        """Return them; nothing else may hold them then, or each would be copied."""
        del grad
        gradients, ctx.gradients = ctx.gradients, None
        return None, *gradients
