"""Frozen 4-bit weights: dequantised for each product into a buffer that all of them share.

bitsandbytes' own operation keeps a dequantised weight alive from each layer, or a compiler does: it finds that forward
and backward pass want the same matrix. In here the matrix never leaves the operation, so that one buffer is enough, as
large as the largest weight. The numbers are bitsandbytes', bit for bit (Dettmers et al. 2023, arXiv:2305.14314, section
3: NF4 in blocks of 64, the blocks' constants in 8 bits in blocks of 256).

A frozen weight is passed as a list of tensors (`frozen`): the dense matrix alone, or what `parts` makes of a 4-bit one.
"""

from __future__ import annotations

from typing import Any

import torch

Parts = list[torch.Tensor]
DENSE, SINGLE, DOUBLE = 1, 3, 6
"""Numbers of tensors: a dense matrix; 4 bits with constants in float32; with constants that are quantised, too."""
BLOCK, BLOCK_OF_CONSTANTS = 64, 256

_buffers: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}


def parts(weight: Any) -> Parts | None:
    """Return the tensors of bitsandbytes' 4-bit weight; None for one that is laid out otherwise."""
    state = weight.quant_state
    if state is None or state.quant_type != "nf4" or state.blocksize != BLOCK:
        return None
    packed = weight.data.reshape(-1).view(torch.uint8)
    if not state.nested:
        return [packed, state.absmax, state.code]
    if state.state2.blocksize != BLOCK_OF_CONSTANTS:
        return None
    return [packed, state.absmax, state.code, state.state2.code, state.state2.absmax, state.offset.reshape(1)]


def matrix(weight: Parts, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the dense matrix (rows, columns). Of a 4-bit one it is overwritten by the next call."""
    if len(weight) == DENSE:
        return weight[0]
    out = _buffer(rows * columns, dtype, weight[0].device)
    if out.is_cuda:
        from finetune_trainer.fast.kernels.triton_nf4 import dequantise

        dequantise(weight, out)
    else:
        _dequantise(weight, out)
    return out.view(rows, columns)


def _buffer(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    held = _buffers.get((device, dtype))
    if held is None or held.numel() < size:
        held = _buffers[device, dtype] = torch.empty(size, dtype=dtype, device=device)
    return held[:size]


def forget_buffers() -> None:
    """Give the shared matrices' memory back."""
    _buffers.clear()


def _dequantise(weight: Parts, out: torch.Tensor) -> None:
    packed, constants, code, *nested = weight
    if nested:
        codes, scales, offset = nested
        scale = scales.repeat_interleave(BLOCK_OF_CONSTANTS)[: constants.numel()]
        constants = codes[constants.int()] * scale + offset
    nibbles = torch.stack((packed >> 4, packed & 15), dim=1).flatten()
    out.copy_(code[nibbles.int()] * constants.repeat_interleave(BLOCK)[: nibbles.numel()])
