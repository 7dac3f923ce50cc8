"""Quantising to FP8 in one pass over the numbers, and turning a matrix of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from finetune_trainer.fast.kernels.fp8 import FORMAT, LARGEST, LEAST

_MOST = 2
"""Matrices side by side: gate and up."""
_A_WARP, _LEAST_WARPS, _MOST_WARPS = 1024, 4, 32
"""Numbers that one warp holds."""
_TILE_ROWS, _TILE_COLUMNS, _TILE_WARPS = 128, 128, 8


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _quantise(  # type: ignore[no-untyped-def]  # Triton's types
    first, second, first_scales, second_scales, out, scales, first_stride, second_stride, first_width, second_width,
    TWO: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr, MOST: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    x = tl.load(first + row * first_stride + at, mask=at < first_width, other=0.0).to(tl.float32)
    if SCALED:
        x = x * tl.load(first_scales + at, mask=at < first_width, other=0.0)
    most = tl.max(tl.abs(x), 0)
    if TWO:
        y = tl.load(second + row * second_stride + at, mask=at < second_width, other=0.0).to(tl.float32)
        if SCALED:
            y = y * tl.load(second_scales + at, mask=at < second_width, other=0.0)
        most = tl.maximum(most, tl.max(tl.abs(y), 0))
    most = tl.maximum(most, LEAST)
    factor = MOST / most
    to = out + row * (first_width + second_width) + at
    tl.store(to, (x * factor).to(out.dtype.element_ty), mask=at < first_width)
    if TWO:
        tl.store(to + first_width, (y * factor).to(out.dtype.element_ty), mask=at < second_width)
    tl.store(scales + row, most / MOST)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _turn(  # type: ignore[no-untyped-def]
    matrix, out, rows, columns, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    there = (row[:, None] < rows) & (column[None, :] < columns)
    tile = tl.load(matrix + row[:, None] * columns + column[None, :], mask=there, other=0)
    tl.store(out + column[:, None] * stride + row[None, :], tl.trans(tile), mask=tl.trans(there))


def quantise(
    parts: Sequence[torch.Tensor], scales: Sequence[torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one or two matrices side by side in FP8, and the scale of each row."""
    if len(parts) > _MOST:
        raise ValueError(f"{len(parts)} matrices: at most {_MOST}")
    rows = [part if part.stride(1) == 1 else part.contiguous() for part in parts]
    first, second, two = rows[0], rows[-1], len(rows) == _MOST
    widths = [part.shape[1] for part in rows]
    out = torch.empty((len(first), sum(widths)), dtype=FORMAT, device=first.device)
    found = torch.empty((len(first), 1), dtype=torch.float32, device=first.device)
    factors = scales or [found, found]
    block = triton.next_power_of_2(max(widths))
    _quantise[(len(first),)](
        first, second, factors[0], factors[-1], out, found, first.stride(0), second.stride(0),
        widths[0], widths[1] if two else 0,
        TWO=two, SCALED=scales is not None, BLOCK=block, MOST=LARGEST, LEAST=LEAST,
        num_warps=_warps(block * len(rows)),
    )  # fmt: skip
    return out, found


def _warps(width: int) -> int:
    """Return the warps of a program that holds a whole row."""
    return min(max(width // _A_WARP, _LEAST_WARPS), _MOST_WARPS)


def turn(matrix: torch.Tensor, out: torch.Tensor) -> None:
    """Write a matrix of bytes into `out` (columns, rows), whose rows may lie further apart."""
    rows, columns = matrix.shape
    _turn[(triton.cdiv(columns, _TILE_COLUMNS), triton.cdiv(rows, _TILE_ROWS))](
        matrix, out, rows, columns, out.stride(0), ROWS=_TILE_ROWS, COLUMNS=_TILE_COLUMNS, num_warps=_TILE_WARPS
    )
