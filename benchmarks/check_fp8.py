"""The kernels and products of a frozen base in FP8 on a GPU: right, and how fast beside bfloat16's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.check_kernels import random_numbers, relative_error
from finetune_trainer.fast.kernels import fp8, gated_mlp, grouped
from finetune_trainer.fast.kernels.nf4 import Parts

HIDDEN, WIDTH, RANK, TOKENS = 256, 512, 16, 192
ROUNDED = 0.02
"""What bfloat16 leaves of a product of the same quantised numbers."""
NOISE = 0.1
"""What quantising activations and gradients, too, may leave."""


def fp8_is_right() -> dict[str, Any]:
    """Compare the kernels with plain torch, the products with those of the same quantised numbers in float32, and the
    operations with autograd on the dequantised weights.
    """
    wide, other = random_numbers(TOKENS, 3 * WIDTH).bfloat16(), random_numbers(TOKENS, WIDTH, scale=20).bfloat16()
    scales = [random_numbers(WIDTH, seed=5).abs(), random_numbers(WIDTH, seed=6).abs()]
    same = [
        _same_numbers([wide], None),
        _same_numbers([wide[:, WIDTH : 2 * WIDTH]], scales[:1]),
        _same_numbers([wide[:, WIDTH : 2 * WIDTH], other], scales),
    ]
    weights = [fp8.parts(random_numbers(size, HIDDEN, scale=0.06, seed=size).bfloat16()) for size in (WIDTH, 2 * WIDTH)]
    products = [*_forward_errors(weights), *_backward_errors(weights)]
    operations = [*_gated_errors(), *_grouped_errors()]
    return {
        "right": all(same) and max(products) < ROUNDED and max(operations) < NOISE,
        "same_numbers": same,
        "products": [round(one, 4) for one in products],
        "operations": [round(one, 4) for one in operations],
    }


def _same_numbers(parts: list[torch.Tensor], scales: list[torch.Tensor] | None) -> bool:
    """Whether the kernel quantises as plain torch does, but for what lies between two numbers to the last bit."""
    (numbers, scale), (expected, of_expected) = (
        fp8.quantise(parts, scales),
        fp8.quantise([one.cpu() for one in parts], scales and [one.cpu() for one in scales]),
    )
    apart = (numbers.cpu().float() != expected.float()).float().mean()
    return bool(apart < 1e-3 and torch.allclose(scale.cpu(), of_expected, rtol=1e-6))


def _dequantised(quantised: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    numbers, scale = quantised
    return numbers.float() * scale


def _forward_errors(weights: list[Parts]) -> list[float]:
    x = random_numbers(TOKENS, HIDDEN).bfloat16()
    exact = [_dequantised(fp8.quantise([x])) @ fp8.matrix(weight, torch.float32).t() for weight in weights]
    return [relative_error(one, other) for one, other in zip(fp8.forward(x, weights), exact, strict=True)]


def _backward_errors(weights: list[Parts]) -> list[float]:
    grads = [random_numbers(TOKENS, len(weight[0]), seed=3).bfloat16() for weight in weights]
    quantised = _dequantised(fp8.quantise(grads, [scales for _, scales in weights]))
    numbers = torch.cat([numbers.view(fp8.FORMAT).float() for numbers, _ in weights])
    dense = sum(grad.float() @ fp8.matrix(w, torch.float32) for grad, w in zip(grads, weights, strict=True))
    found = fp8.backward(grads, weights)
    assert isinstance(dense, torch.Tensor)
    assert relative_error(found, dense) < NOISE
    return [relative_error(found, quantised @ numbers)]


def _gated_errors() -> list[float]:
    dense = [random_numbers(WIDTH, HIDDEN, scale=0.06, seed=n) for n in (1, 2)] + [
        random_numbers(HIDDEN, WIDTH, scale=0.06)
    ]
    held = [fp8.parts(one.bfloat16()) for one in dense]
    low = [
        random_numbers(2 * RANK, HIDDEN, scale=0.06),
        *(random_numbers(WIDTH, RANK, scale=0.2, seed=n) for n in (3, 4)),
        random_numbers(RANK, WIDTH, scale=0.06),
        random_numbers(HIDDEN, RANK, scale=0.2),
    ]
    x, grad = random_numbers(TOKENS, HIDDEN).bfloat16(), random_numbers(TOKENS, HIDDEN, seed=9).bfloat16()
    inputs = [one.bfloat16().detach().requires_grad_() for one in (x, *low)]

    def passed() -> list[torch.Tensor]:
        out, *_ = gated_mlp.gated_mlp(inputs[0], *held, *inputs[1:], "silu")
        return [out.detach(), *torch.autograd.grad(out, inputs, grad)]

    return _errors(passed)


def _grouped_errors() -> list[float]:
    rows = (256, 64, 64)
    held = fp8.parts(
        torch.cat([random_numbers(one, HIDDEN, scale=0.06, seed=n) for n, one in enumerate(rows)]).bfloat16()
    )
    low = [
        random_numbers(3 * RANK, HIDDEN, scale=0.06),
        *(random_numbers(one, RANK, scale=0.2, seed=one) for one in rows),
    ]
    grad = random_numbers(TOKENS, sum(rows), seed=9).bfloat16()
    inputs = [one.bfloat16().detach().requires_grad_() for one in (random_numbers(TOKENS, HIDDEN), *low)]

    def passed() -> list[torch.Tensor]:
        out, _ = grouped.grouped(inputs[0], held, [len(held)], inputs[1], inputs[2:])
        return [out.detach(), *torch.autograd.grad(out, inputs, grad)]

    return _errors(passed)


def _errors(passed: Any) -> list[float]:
    """Return how far results and gradients in FP8 are from those of the dequantised weights in bfloat16."""
    found = passed()
    with fp8.dequantised():
        expected = passed()
    return [relative_error(one, other) for one, other in zip(found, expected, strict=True)]


def fp8_speed() -> dict[str, Any]:
    """Return milliseconds at the sizes of an 8B model's layer and 16,384 tokens."""
    tokens, hidden, width = 16384, 4096, 14336
    result: dict[str, Any] = {"right": True}
    narrow, wide, second = (
        random_numbers(tokens, size, seed=n).bfloat16() for n, size in enumerate((hidden, width, width))
    )
    scales = [torch.ones(width, device="cuda")] * 2
    result["quantise"] = {
        f"{hidden}": _ms(lambda: fp8.quantise([narrow])),
        f"{width}": _ms(lambda: fp8.quantise([wide])),
        f"2 x {width}, scaled": _ms(lambda: fp8.quantise([wide, second], scales)),
    }
    gate, up, down = (
        fp8.parts(random_numbers(*size, scale=0.02).bfloat16()) for size in [(width, hidden)] * 2 + [(hidden, width)]
    )
    qkv = fp8.parts(random_numbers(6144, hidden, scale=0.02).bfloat16())
    result["turn"] = {
        "gate and up": _ms(lambda: fp8._turned([gate[0], up[0]])),
        "down": _ms(lambda: fp8._turned([down[0]])),
        **{f"gate and up, {tile}": ms for tile, ms in _tiles([gate[0], up[0]])},
    }
    result["products"] = {
        "gate": _both(narrow, gate),
        "gate and up, back": _both(torch.cat([wide, second], 1), _turned_parts(gate, up)),
        "down": _both(wide, down),
        "down, back": _both(narrow, _turned_parts(down)),
        "qkv": _both(narrow, qkv),
    }
    return result


def _tiles(weights: list[torch.Tensor]) -> Iterator[tuple[str, float]]:
    """Yield other tiles of the kernel that turns, with its time."""
    from finetune_trainer.fast.kernels import triton_fp8

    names = ("_TILE_ROWS", "_TILE_COLUMNS", "_TILE_WARPS")
    usual = {name: getattr(triton_fp8, name) for name in names}
    for tile in ((64, 64, 4), (128, 64, 4), (64, 128, 4), (128, 128, 4), (128, 256, 8), (256, 64, 8)):
        vars(triton_fp8).update(zip(names, tile, strict=True))
        yield " x ".join(map(str, tile)), _ms(lambda: fp8._turned(weights))
    vars(triton_fp8).update(usual)


def _turned_parts(*weights: Parts) -> Parts:
    turned = fp8._turned([numbers for numbers, _ in weights]).clone()
    return [turned.view(torch.uint8), torch.ones(len(turned), device="cuda")]


def _both(x: torch.Tensor, weight: Parts) -> dict[str, Any]:
    """Return a product's time by scales a row, by one scale, and in bfloat16."""
    (numbers, scale), held, one = fp8.quantise([x]), weight[0].view(fp8.FORMAT), torch.ones((), device="cuda")
    dense = fp8.matrix(weight, torch.bfloat16)
    flops = 2 * x.shape[0] * x.shape[1] * len(held)
    ms = {
        "by row": _ms(lambda: fp8._product(numbers, scale, held, weight[1], torch.bfloat16)),
        "one scale": _ms(
            lambda: torch._scaled_mm(numbers, held.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
        ),
        "bfloat16": _ms(lambda: x @ dense.t()),
    }
    return {**ms, "TFLOP/s by row": round(flops / ms["by row"] / 1e9)}


def _ms(work: Any) -> float:
    from triton.testing import do_bench

    found: float = do_bench(work, warmup=50, rep=200, return_mode="median")
    return round(found, 4)
