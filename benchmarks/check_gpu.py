"""Is the fast path right on this machine's GPU? `python -m benchmarks.check_gpu [--only NAME ...] [--out FILE]`

Kernels against the formula in float32; then small random models of each family, through the compiled path: loss and the
gradient of every adapter against transformers and PEFT in float32, beside the error that these have themselves in
bfloat16. NF4 is compared on the dequantised weights. One JSON line a case; the exit code is 1 if one is off.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune_contract.spec import Lora
from finetune_trainer.fast.kernels import attention_backends, attention_choice, gated_mlp, grouped, loss, nf4
from finetune_trainer.fast.kernels.layout import Layout
from finetune_trainer.fast.micro_batches import MicroBatch, StepCollator
from finetune_trainer.fast.path import FastPath, flat
from finetune_trainer.model.adapters import attach
from tests.support.families import make_model

SIZE: dict[str, Any] = {
    "vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
WIDE = {"head_dim": 128}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZE),
    "qwen3": ("qwen3", {**SIZE, **WIDE}),
    "mistral, window": ("mistral", {**SIZE, "sliding_window": 48}),
    "gemma3": ("gemma3_text", {**SIZE, "head_dim": 256, "sliding_window": 48,
                               "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "gemma3, 128": ("gemma3_text", {**SIZE, "head_dim": 128, "sliding_window": 48,
                               "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "phi3": ("phi3", SIZE),
    "olmo2": ("olmo2", SIZE),
    "qwen2, biases": ("qwen2", SIZE),
    "mixtral": ("mixtral", {**SIZE, **EXPERTS}),
}  # fmt: skip
TOKENS = 640
"""Of a micro-batch."""
EQUAL, RAGGED = (128, 128, 128, 128), (200, 60, 33, 151, 7, 98)
TWO_SIZES = (*RAGGED, 127, 90, 300)
ROOM, LEAST = 1.5, 0.01
"""The fast path's error may be so many times that of transformers and PEFT in bfloat16, or this much."""


def main() -> int:
    """Check all; return 1 if something is off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    wrong = 0
    for name, check in cases():
        if options.only and not any(name.startswith(one) for one in options.only):
            continue
        found = {"case": name, **tried(check)}
        wrong += not found["right"]
        print(json.dumps(found), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
    return int(wrong > 0)


def tried(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a check found, or how it failed."""
    started = time.monotonic()
    try:
        found = check()
    except Exception as error:
        return {"right": False, "error": f"{type(error).__name__}: {error}"[:600], "at": traceback.format_exc()[-900:]}
    return {**found, "seconds": round(time.monotonic() - started, 1)}


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield names and checks."""
    for nested in (True, False):
        yield f"kernel nf4, nested {nested}", partial(nf4_equals_bitsandbytes, nested=nested)
    for activation in gated_mlp.ACTIVATIONS:
        yield f"kernel gated {activation}", partial(gated_is_right, activation)
        yield f"kernel gated {activation}, many tokens", partial(gated_is_right, activation, tokens=32768)
    yield "kernel grouped", grouped_is_right
    for cap in (None, 30.0):
        yield f"kernel loss, cap {cap}", partial(loss_is_right, cap)
    for window, width in ((0, 128), (48, 128), (0, 256), (48, 256)):
        name = f"kernel attention, window {window}, heads of {width}"
        yield name, partial(attention_is_right, window, width)
    for name in MODELS:
        yield f"model {name}", partial(model_is_right, name, RAGGED)
    yield "model llama, micro-batches of two lengths", partial(model_is_right, "llama", TWO_SIZES)
    yield "model llama, equal lengths", lambda: model_is_right("llama", EQUAL)
    yield "model llama, recomputed", partial(model_is_right, "llama", RAGGED, recompute=True)
    yield "model llama, rank 8", lambda: model_is_right("llama", RAGGED, rank=8)
    yield "model llama, NF4", partial(model_is_right, "llama", RAGGED, quantised=True)
    yield "model gemma3, NF4", lambda: model_is_right("gemma3", RAGGED, quantised=True)


def _random(*size: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed + sum(size))
    return scale * torch.randn(*size, generator=generator, device="cuda")


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def nf4_equals_bitsandbytes(*, nested: bool) -> dict[str, Any]:
    """Compare bit by bit."""
    import bitsandbytes.functional as bnb
    from triton.testing import do_bench

    weight = _random(14336, 4096, scale=0.02).bfloat16()
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
        _random(tokens, hidden),
        *(_random(width, hidden, scale=0.06, seed=n) for n in (1, 2)),
        _random(hidden, width, scale=0.06),
    )
    a, b_gate, b_up = _random(2 * rank, hidden, scale=0.06), *(_random(width, rank, scale=0.2, seed=n) for n in (3, 4))
    low = (a, b_gate, b_up, _random(rank, width, scale=0.06), _random(hidden, rank, scale=0.2))
    grad = _random(tokens, hidden, seed=9)
    found = _gated(
        x.bfloat16(), [w.bfloat16() for w in (gate, up, down)], [m.bfloat16() for m in low], activation, grad
    )
    exact = _gated_formula(x.bfloat16(), (gate, up, down), low, activation, grad)
    errors = [_error(one, other) for one, other in zip(found, exact, strict=True)]
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
    x, grad = _random(192, hidden).bfloat16(), _random(192, sum(rows), seed=9).bfloat16()
    dense = [_random(one, hidden, scale=0.06, seed=n).bfloat16() for n, one in enumerate(rows)]
    low = [
        _random(3 * rank, hidden, scale=0.06),
        *(_random(one, rank, scale=0.2, seed=n) for n, one in enumerate(rows)),
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
    return [_error(one, other) for one, other in zip(found, exact, strict=True)]


def loss_is_right(cap: float | None) -> dict[str, Any]:
    """Compare loss and gradient with torch's in float32."""
    hidden, weight = _random(300, 256).bfloat16(), _random(50257, 256, scale=0.1).bfloat16()
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
    error, off = _error(mine.grad, plain.grad), abs(found.item() / expected.item() - 1)
    return {"right": error < 0.01 and off < 1e-3, "gradient": round(error, 5), "loss": round(off, 7)}


def attention_is_right(window: int, width: int) -> dict[str, Any]:
    """Compare each of torch's kernels with the formula."""
    result: dict[str, Any] = {"right": True}
    for name, lengths in (("flash", RAGGED), ("cuDNN", EQUAL)):
        if name == "cuDNN" and (window or width > 128):
            continue
        starts = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)
        layout, tokens = Layout(starts, lengths), sum(lengths)
        query, key, value, grad = (_random(tokens, heads, width, seed=heads) for heads in (8, 2, 2, 8))
        value = value.roll(1, 0)
        scale = width**-0.5
        exact = _attended(attention_backends.Plain(layout), (query, key, value, grad), scale=scale, window=window)
        kernel = attention_choice.KINDS[name](layout)
        low = tuple(one.bfloat16() for one in (query, key, value, grad))
        errors = [_error(a, b) for a, b in zip(_attended(kernel, low, scale=scale, window=window), exact, strict=True)]
        result[name] = [round(one, 4) for one in errors]
        result["right"] &= max(errors) < 0.02
    return result


def _attended(backend: Any, inputs: tuple[torch.Tensor, ...], *, scale: float, window: int) -> Any:
    query, key, value, grad = inputs
    out, sums = backend.forward(query, key, value, scale=scale, window=window)
    return out, *backend.backward(grad, query, key, value, out, sums, scale=scale, window=window)


def model_is_right(
    name: str,
    lengths: tuple[int, ...],
    *,
    recompute: bool = False,
    rank: int = 16,
    quantised: bool = False,
) -> dict[str, Any]:
    """Compare a model's loss and gradients, compiled, with transformers and PEFT in float32."""
    torch._dynamo.reset()
    attention_choice.fastest[4, SIZE["hidden_size"] // 4, torch.bfloat16] = "cuDNN"
    model = _tuned(name, rank=rank, quantised=quantised)
    rows, step = _examples(lengths)
    path = FastPath(model, compiled=True)
    path.recompute = recompute
    with torch.autocast("cuda", dtype=torch.bfloat16):
        mine, eager = _flat_pass(model, path, step), _flat_pass(model, path, step, compiled=False)
        plain = _plain_pass(model, rows)
    exact = _plain_pass(_in_float32(model, name, rank=rank, quantised=quantised), rows)
    error, usual = _error(mine[1], exact[1]), _error(plain[1], exact[1])
    worst = max(_error(mine[2][key], exact[2][key]) for key in exact[2])
    return {
        "right": error <= max(ROOM * usual, LEAST) and abs(mine[0] / exact[0] - 1) < 0.005,
        "gradient": round(error, 4),
        "gradient_not_compiled": round(_error(eager[1], exact[1]), 4),
        "gradient_of_peft_bf16": round(usual, 4),
        "worst_adapter": round(worst, 4),
        "loss": [round(one, 3) for one in (mine[0], plain[0], exact[0])],
        "what": path.summary,
    }


def _tuned(name: str, *, rank: int, quantised: bool) -> Any:
    family, settings = MODELS[name]
    with torch.device("cuda"):
        model = make_model(family, settings, attn_implementation="sdpa").bfloat16()
    if quantised:
        from benchmarks.estimate_bench import quantise

        quantise(model, storage=torch.uint8)
        model.to("cuda")
    model.config.use_cache = False
    tuned = attach(model, Lora(rank=rank), alpha=2 * rank, seed=0, quantised=quantised).cuda().train()
    random_numbers = torch.Generator("cuda").manual_seed(5)
    for parameter_name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        if "lora_B" in parameter_name:
            parameter.data.normal_(0, 0.05, generator=random_numbers)
    return tuned


def _in_float32(model: Any, name: str, *, rank: int, quantised: bool) -> Any:
    """Return the same model, its weights in float32: those of 4 bits dequantised."""
    import bitsandbytes.functional as bnb

    family, settings = MODELS[name]
    with torch.device("cuda"):
        base = make_model(family, settings, attn_implementation="sdpa").float()
    base.config.use_cache = False
    exact = attach(base, Lora(rank=rank), alpha=2 * rank, seed=0).cuda().train()
    state = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    missing = exact.load_state_dict(state, strict=False).missing_keys
    assert quantised or not missing, missing
    if quantised:
        packed = dict(model.named_parameters())
        for key in missing:
            weight = packed[key]
            exact.get_parameter(key).data.copy_(bnb.dequantize_4bit(weight.data, weight.quant_state).float())
    return exact


def _examples(lengths: tuple[int, ...]) -> tuple[list[dict[str, list[int]]], list[MicroBatch]]:
    dice = random.Random(1)  # noqa: S311
    rows = [{"input_ids": [dice.randrange(5, 1000) for _ in range(length)]} for length in lengths]
    for row in rows:
        half = len(row["input_ids"]) // 3
        row["labels"] = [-100] * half + row["input_ids"][half:]
    step = StepCollator(tokens=TOKENS, pad_token_id=0)(rows)
    return rows, [one.to(torch.device("cuda")) for one in step["micro_batches"]]


def _collected(model: Any, total: float) -> tuple[float, torch.Tensor, dict[str, torch.Tensor]]:
    grads = {name: one.grad.float().clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad(set_to_none=True)
    return total, torch.cat([grads[name].flatten() for name in sorted(grads)]), grads


def _flat_pass(model: Any, path: FastPath, step: list[MicroBatch], *, compiled: bool = True) -> Any:
    total = 0.0
    with path.running(compiled=compiled):
        for one in step:
            with flat(one):
                found = model(micro_batch=one)
                found.backward()
            total += found.item()
    return _collected(model, total)


def _plain_pass(model: Any, rows: list[dict[str, list[int]]]) -> Any:
    total = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]], device="cuda")).logits[0, :-1].float()
        labels = torch.tensor(row["labels"][1:], device="cuda")
        found = torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
        found.backward()  # type: ignore[no-untyped-call]
        total += found.item()
    return _collected(model, total)


if __name__ == "__main__":
    torch.backends.cuda.matmul.allow_tf32 = False
    sys.exit(main())
