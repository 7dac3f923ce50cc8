"""The fast path's kernels against formulas in float32 on a GPU: each returns whether it is right, and its errors."""

from __future__ import annotations

from typing import Any

import torch

from finetune_trainer.fast.kernels import attention_backends, attention_choice, gated_mlp, grouped, loss, nf4
from finetune_trainer.fast.kernels.attention_choice import CUDNN, FA4, FLASH
from finetune_trainer.fast.kernels.attention_cute import is_there

EQUAL, RAGGED = (128, 128, 128, 128), (200, 60, 33, 151, 7, 98)
"""Lengths of documents in a row."""


def random_numbers(*size: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Return the same numbers each time, on the card."""
    generator = torch.Generator("cuda").manual_seed(seed + sum(size))
    return scale * torch.randn(*size, generator=generator, device="cuda")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how far a tensor is off, relative to what it should be."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def nf4_equals_bitsandbytes(*, nested: bool) -> dict[str, Any]:
    """Compare bit by bit."""
    import bitsandbytes.functional as bnb
    from triton.testing import do_bench

    weight = random_numbers(14336, 4096, scale=0.02).bfloat16()
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
    packed.quant_state = state
    parts = nf4.parts(packed)
    assert parts is not None
    rows, columns = weight.shape
    equal = torch.equal(nf4.matrix(parts, rows, columns, torch.bfloat16), bnb.dequantize_4bit(packed, state))
    ours = do_bench(lambda: nf4.matrix(parts, rows, columns, torch.bfloat16), return_mode="median")
    theirs = do_bench(lambda: bnb.dequantize_4bit(packed, state), return_mode="median")
    return {"right": equal, "ms": round(ours, 4), "ms_bitsandbytes": round(theirs, 4)}


def gated_is_right(activation: str, tokens: int = 192) -> dict[str, Any]:
    """Compare the operation in bfloat16 with autograd in float32, on the same numbers."""
    hidden, width, rank = 256, 512, 16
    x, gate, up, down = (
        random_numbers(tokens, hidden),
        *(random_numbers(width, hidden, scale=0.06, seed=n) for n in (1, 2)),
        random_numbers(hidden, width, scale=0.06),
    )
    a, b_gate, b_up = (
        random_numbers(2 * rank, hidden, scale=0.06),
        *(random_numbers(width, rank, scale=0.2, seed=n) for n in (3, 4)),
    )
    low = (a, b_gate, b_up, random_numbers(rank, width, scale=0.06), random_numbers(hidden, rank, scale=0.2))
    grad = random_numbers(tokens, hidden, seed=9)
    found = _gated(
        x.bfloat16(), [w.bfloat16() for w in (gate, up, down)], [m.bfloat16() for m in low], activation, grad
    )
    exact = _gated_formula(x.bfloat16(), (gate, up, down), low, activation, grad)
    errors = [relative_error(one, other) for one, other in zip(found, exact, strict=True)]
    return {"right": max(errors) < 0.02, "errors": [round(one, 4) for one in errors]}


def _gated(x: torch.Tensor, weights: Any, low: Any, activation: str, grad: torch.Tensor) -> list[torch.Tensor]:
    inputs = [one.detach().requires_grad_() for one in (x, *low)]
    out, *_ = gated_mlp.gated_mlp(inputs[0], *([one] for one in weights), *inputs[1:], activation)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.bfloat16())]


def _gated_formula(x: torch.Tensor, weights: Any, low: Any, activation: str, grad: torch.Tensor) -> list[torch.Tensor]:
    gate, up, down = (one.bfloat16().float() for one in weights)
    inputs = [one.bfloat16().float().requires_grad_() for one in (x, *low)]
    h, a, b_gate, b_up, a_down, b_down = inputs
    a_gate, a_up = a.chunk(2)
    first = h @ gate.t() + h @ a_gate.t() @ b_gate.t()
    second = h @ up.t() + h @ a_up.t() @ b_up.t()
    inner = gated_mlp.act(first, activation) * second
    out = inner @ down.t() + inner @ a_down.t() @ b_down.t()
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.bfloat16().float())]


def grouped_is_right() -> dict[str, Any]:
    """Compare queries, keys and values in bfloat16 with autograd in float32, dense and in 4 bits."""
    import bitsandbytes.functional as bnb

    hidden, rank, rows = 256, 16, (256, 64, 64)
    x, grad = random_numbers(192, hidden).bfloat16(), random_numbers(192, sum(rows), seed=9).bfloat16()
    dense = [random_numbers(one, hidden, scale=0.06, seed=n).bfloat16() for n, one in enumerate(rows)]
    low = [
        random_numbers(3 * rank, hidden, scale=0.06),
        *(random_numbers(one, rank, scale=0.2, seed=n) for n, one in enumerate(rows)),
    ]
    low = [one.bfloat16() for one in low]
    result: dict[str, Any] = {"right": True}
    for name in ("dense", "nf4"):
        weights, exact = [[one] for one in dense], dense
        if name == "nf4":
            weights, exact = [], []
            for one in dense:
                packed, state = bnb.quantize_4bit(one, quant_type="nf4", compress_statistics=True)
                packed.quant_state = state
                weights.append(nf4.parts(packed) or [])
                exact.append(bnb.dequantize_4bit(packed, state))
        errors = _grouped_errors(x, weights, exact, low, grad)
        result[name] = [round(one, 4) for one in errors]
        result["right"] &= max(errors) < 0.02
    return result


def _grouped_errors(
    x: torch.Tensor, weights: list[nf4.Parts], dense: list[torch.Tensor], low: list[torch.Tensor], grad: torch.Tensor
) -> list[float]:
    mine = [one.detach().clone().requires_grad_() for one in (x, *low)]
    flat = [part for each in weights for part in each]
    out, _ = grouped.grouped(mine[0], flat, [len(each) for each in weights], mine[1], mine[2:])
    found = [out.detach(), *torch.autograd.grad(out, mine, grad)]
    h, a, *b = (one.float().requires_grad_() for one in (x, *low))
    ranks = [one.shape[1] for one in b]
    layers = zip(dense, torch.split(a, ranks), b, strict=True)
    plain = torch.cat([h @ weight.float().t() + h @ first.t() @ second.t() for weight, first, second in layers], 1)
    exact = [plain.detach(), *torch.autograd.grad(plain, [h, a, *b], grad.float())]
    return [relative_error(one, other) for one, other in zip(found, exact, strict=True)]


def loss_is_right(cap: float | None) -> dict[str, Any]:
    """Compare loss and gradient with torch's in float32."""
    hidden, weight = random_numbers(300, 256).bfloat16(), random_numbers(50257, 256, scale=0.1).bfloat16()
    targets = torch.randint(0, 50257, (300,), device="cuda")
    mine, plain = hidden.clone().requires_grad_(), hidden.float().requires_grad_()
    found = loss.counted_loss(mine, targets, loss.Head(weight, scale=0.5, cap=cap))
    found.backward()  # type: ignore[no-untyped-call]
    logits = plain @ weight.float().t() * 0.5
    logits = cap * torch.tanh(logits / cap) if cap else logits
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    expected.backward()  # type: ignore[no-untyped-call]
    assert mine.grad is not None
    assert plain.grad is not None
    error, off = relative_error(mine.grad, plain.grad), abs(found.item() / expected.item() - 1)
    return {"right": error < 0.01 and off < 1e-3, "gradient": round(error, 5), "loss": round(off, 7)}


def attention_is_right(window: int, width: int) -> dict[str, Any]:
    """Compare each kernel with the formula."""
    result: dict[str, Any] = {"right": True}
    for name, lengths in ((FLASH, RAGGED), (CUDNN, EQUAL), (FA4, RAGGED)):
        if (name == CUDNN and (window or width > 128)) or (name == FA4 and not is_there()):
            continue
        layout, tokens = attention_choice.layout_of(lengths), sum(lengths)
        query, key, value, grad = (random_numbers(tokens, heads, width, seed=heads) for heads in (8, 2, 2, 8))
        value = value.roll(1, 0)
        scale = width**-0.5
        exact = _attended(attention_backends.Plain(layout), (query, key, value, grad), scale=scale, window=window)
        kernel = attention_choice.KINDS[name](layout)
        low = tuple(one.bfloat16() for one in (query, key, value, grad))
        errors = [
            relative_error(a, b) for a, b in zip(_attended(kernel, low, scale=scale, window=window), exact, strict=True)
        ]
        result[name] = [round(one, 4) for one in errors]
        result["right"] &= max(errors) < 0.02
    return result


def _attended(backend: Any, inputs: tuple[torch.Tensor, ...], *, scale: float, window: int) -> Any:
    query, key, value, grad = inputs
    out, sums = backend.forward(query, key, value, scale=scale, window=window)
    return out, *backend.backward(grad, query, key, value, out, sums, scale=scale, window=window)
