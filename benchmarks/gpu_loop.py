"""Our own loop on a random model that is made on the card: `python -m benchmarks.gpu_loop [options]`, one JSON line.

What `gpu.py` measures by whole runs of the CLI, without loading and storing anything: for looking at one setting, and
with --profile for where the time of a step goes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.estimate_bench import make_model, tokenizer
from benchmarks.estimate_settings import SHAPES, Setting
from benchmarks.gpu_inputs import METHODS
from benchmarks.gpu_split import split_of

TOKENS_A_STEP = 32768
LONGEST = 2048


def lengths_of(data: str, steps: int) -> tuple[list[int], int]:
    """Return the examples' tokens for some steps, and how many make a step: as many tokens for either kind of data."""
    if data == "fixed":
        batch = TOKENS_A_STEP // LONGEST
        return [LONGEST] * (batch * steps), batch
    if data == "long":
        return [16384] * (2 * steps), 2
    dice = random.Random(0)  # noqa: S311
    batch = TOKENS_A_STEP // 280
    found = [int(dice.lognormvariate(math.log(280) - 0.32, 0.8)) for _ in range(batch * steps)]
    return [min(max(one, 16), LONGEST) for one in found], batch


def rows_of(lengths: list[int], *, vocabulary: int, data: str) -> Any:
    """Return random examples; of instructions half of each is an answer, and counts."""
    import torch
    from datasets import Dataset

    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    labels = [[-100] * (len(one) // 2) + one[len(one) // 2 :] for one in ids] if data == "instr" else ids
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def make_loop(options: argparse.Namespace, folder: Path) -> Any:
    """Return the loop."""
    from finetune_contract.prepared import Prepared
    from finetune_contract.spec import Precision
    from finetune_trainer.data.dataset import Data
    from finetune_trainer.fast.choice import fast_path
    from finetune_trainer.fast.layers_fp8 import hold_in_fp8
    from finetune_trainer.model.build import hold_trained
    from finetune_trainer.training.arguments import loop_arguments
    from finetune_trainer.training.loop import Loop
    from tests.support.prepared import make_config, make_resolved

    method = METHODS[options.base]
    lengths, batch = lengths_of(options.data, options.steps)
    vocabulary = int(SHAPES[options.shape]["vocab_size"])
    rows = rows_of(lengths, vocabulary=vocabulary, data=options.data)
    longest = max(lengths) if options.data == "long" else LONGEST
    micro_batch = max(options.tokens // longest, 1)
    if options.plain:
        micro_batch = next(size for size in range(micro_batch, 0, -1) if batch % size == 0)
    model = make_model(Setting(options.shape, method, longest, micro_batch))
    if options.base == "fp8":
        hold_in_fp8(model)
    resolved = make_resolved(
        precision=Precision.BFLOAT16, total_steps=options.steps, batch_size=batch, micro_batch_size=micro_batch,
        max_sequence_length=longest, packing=options.data == "instr", gradient_checkpointing=False, lora_alpha=16,
        eval_every_steps=10000, learning_rate=1e-4,
    )  # fmt: skip
    config = make_config(output_uri="file:///out", model_uri="file:///model", method=method)
    fast = None if options.plain else fast_path(model, config.spec, resolved, rows, work=folder)
    if fast:
        fast.recompute = options.recompute
    known: dict[str, Any] = {"resolved": resolved, "pad_token_id": 0}
    prepared = Prepared.model_construct(**known)
    loop = Loop(
        model=model, tokenizer=tokenizer(folder), data=Data(train=rows, validation=[], questions=[]),
        prepared=prepared,
        arguments=loop_arguments(
            config, resolved, micro_batch=batch if fast else micro_batch, folder=folder / "loop", sharing=None
        ),
        flatten=resolved.packing, fast=fast, micro_batch=micro_batch,
    )  # fmt: skip
    hold_trained(model)
    return loop


def meter(times: list[tuple[float, float, float]], profiled: Any) -> Any:
    """Return a callback that notes the time of each step."""
    from transformers import TrainerCallback

    class Meter(TrainerCallback):  # type: ignore[misc]
        def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                times.append((time.monotonic(), logs["num_tokens"], logs["loss"]))
                if profiled and state.global_step == state.max_steps - 1:
                    profiled.start()

    return Meter()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-8b")
    parser.add_argument("--base", choices=sorted(METHODS), default="bf16")
    parser.add_argument("--data", choices=["fixed", "instr", "long"], default="fixed")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--profile", type=Path)
    options = parser.parse_args()

    import torch

    from finetune_trainer.training.dryrun import dry_run

    profiled = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) if options.profile else None
    times: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory(prefix="gpu-loop-") as scratch:
        started = time.monotonic()
        loop = make_loop(options, Path(scratch))
        made = time.monotonic()
        dry_run(loop, micro_batch=loop.micro_batch)
        tried = time.monotonic()
        dry_peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loop.add_callback(meter(times, profiled))
        loop.train()
    if profiled:
        profiled.stop()
    first = options.warm_up - 1
    last = len(times) - (2 if profiled else 1)
    (begin, before, _), (end, after, _) = times[first], times[last]
    each = [b[0] - a[0] for a, b in zip(times[first:last], times[first + 1 : last + 1], strict=True)]
    print(
        json.dumps({
            **{name: str(value) for name, value in vars(options).items() if value},
            "tokens_per_second": round((after - before) / (end - begin)),
            "seconds_a_step": [round(one, 3) for one in each],
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
            "dry_peak_gb": round(dry_peak / 1e9, 2),
            "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
            "make_s": round(made - started, 1), "dry_run_s": round(tried - made, 1),
            "losses": [round(one, 4) for _, _, one in times],
            "fast": loop.fast.summary if loop.fast else None, "compiled": bool(loop.fast and loop.fast.compiled),
        }), flush=True,
    )  # fmt: skip
    if profiled:
        options.profile.write_text(json.dumps(split_of(profiled), indent=1))


if __name__ == "__main__":
    main()
