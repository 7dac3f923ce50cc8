"""Is the fast path right on this machine's GPU? `python -m benchmarks.check_gpu [--only NAME ...] [--out FILE]`

Kernels against the formula in float32; then small random models of each family, through the compiled path: loss and the
gradient of every adapter against transformers and PEFT in float32, beside the error that these have themselves in
bfloat16. NF4 and FP8 are compared on the dequantised weights: FP8 beside the error of PEFT on the same layers, and once
by products of the dequantised weights, in bfloat16. One JSON line a case; the exit code is 1 if one is off.
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

from benchmarks.check_fp8 import fp8_is_right, fp8_speed
from benchmarks.check_kernels import (
    EQUAL,
    RAGGED,
    attention_is_right,
    gated_is_right,
    grouped_is_right,
    loss_is_right,
    nf4_equals_bitsandbytes,
    relative_error,
)
from finetune_contract.spec import Lora
from finetune_trainer.fast.kernels import attention_choice, fp8, gated_mlp
from finetune_trainer.fast.kernels.fp8 import dequantised
from finetune_trainer.fast.layers_fp8 import Fp8Linear, hold_in_fp8
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
    yield "kernel fp8", fp8_is_right
    yield "kernel fp8, speed", fp8_speed
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
    for name in ("llama", "gemma3, 128", "qwen2, biases", "phi3", "mixtral"):
        yield f"model {name}, FP8", partial(model_is_right, name, RAGGED, in_fp8=True)
    yield "model llama, FP8, recomputed", partial(model_is_right, "llama", RAGGED, in_fp8=True, recompute=True)
    yield "model llama, FP8 dequantised", _in_products_of_the_dequantised


def _in_products_of_the_dequantised() -> dict[str, Any]:
    with dequantised():
        return model_is_right("llama", RAGGED, in_fp8=True)


def model_is_right(
    name: str,
    lengths: tuple[int, ...],
    *,
    recompute: bool = False,
    rank: int = 16,
    quantised: bool = False,
    in_fp8: bool = False,
) -> dict[str, Any]:
    """Compare a model's loss and gradients, compiled, with transformers and PEFT in float32."""
    torch._dynamo.reset()
    attention_choice.fastest[4, SIZE["hidden_size"] // 4, torch.bfloat16] = attention_choice.CUDNN
    model = _tuned(name, rank=rank, quantised=quantised)
    if in_fp8:
        hold_in_fp8(model)
    rows, step = _examples(lengths)
    path = FastPath(model, compiled=True)
    path.recompute = recompute
    with torch.autocast("cuda", dtype=torch.bfloat16):
        mine, eager = _flat_pass(model, path, step), _flat_pass(model, path, step, compiled=False)
        plain = _plain_pass(model, rows)
    exact = _plain_pass(_in_float32(model, name, rank=rank, quantised=quantised or in_fp8), rows)
    error, usual = relative_error(mine[1], exact[1]), relative_error(plain[1], exact[1])
    worst = max(relative_error(mine[2][key], exact[2][key]) for key in exact[2])
    return {
        "right": error <= max(ROOM * usual, LEAST) and abs(mine[0] / exact[0] - 1) < 0.005,
        "gradient": round(error, 4),
        "gradient_not_compiled": round(relative_error(eager[1], exact[1]), 4),
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
    """Return the same model, its weights in float32: those of 4 and 8 bits dequantised."""
    family, settings = MODELS[name]
    with torch.device("cuda"):
        base = make_model(family, settings, attn_implementation="sdpa").float()
    base.config.use_cache = False
    exact = attach(base, Lora(rank=rank), alpha=2 * rank, seed=0).cuda().train()
    state = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    missing = exact.load_state_dict(state, strict=False).missing_keys
    assert quantised or not missing, missing
    if quantised:
        for key in missing:
            exact.get_parameter(key).data.copy_(_dense(model.get_submodule(key.removesuffix(".weight"))))
    return exact


def _dense(layer: Any) -> torch.Tensor:
    """Return a quantised layer's weight in float32."""
    if isinstance(layer, Fp8Linear):
        return fp8.matrix(layer.parts, torch.float32)
    import bitsandbytes.functional as bnb

    found: torch.Tensor = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    return found


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
