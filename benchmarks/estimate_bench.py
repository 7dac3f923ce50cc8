"""How right the memory estimate is: real peaks of real training steps on this machine's GPU, beside the estimate.

    python -m benchmarks.estimate_bench [--out FILE] [--shapes NAME ...]   measure (needs a CUDA GPU)
    python -m benchmarks.estimate_bench --share [METHOD ...]               what two GPUs share out, all or of a method
    python -m benchmarks.estimate_bench --table [FILE]                     today's estimate beside measured peaks

Each configuration is two optimizer steps of two micro-batches through the trainer's own loop, so that gradients and
optimizer state are there while the second micro-batch passes. The model is random, of a published shape, made on the
card; every second example has the full length, the others are padded to it, and every token is trained on: the worst
case that the estimate is for.
Each line of the file holds, in bytes: what lies on the card before training, the peak allocated, the peak reserved by
the allocator, and what the driver counts beside it (the CUDA context).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.estimate_settings import SETTINGS, SHAPES, SHARED, Setting
from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.deepspeed_spec import PARTITIONED_WEIGHTS, Offload
from finetune_contract.estimate import Tuning, estimate
from finetune_contract.shape import ModelShape
from finetune_contract.sharing import Sharing
from finetune_contract.spec import Lora, Method, Precision, Quantization

RESULTS = Path(__file__).parent / "results" / "2026-11-25-estimate.jsonl"
_F, _Q = "Full", "QLoRA"


def tuning_of(setting: Setting) -> Tuning:
    """Return what the estimate is asked."""
    return Tuning(
        method=Method(setting.method),
        precision=Precision.BFLOAT16,
        lora=Lora(rank=setting.rank),
        quantization=Quantization(),
        micro_batch=setting.micro_batch,
        sequence_length=setting.length,
        recompute=setting.recompute,
        packing=setting.packing,
        sharing=Sharing(setting.zero, Offload(setting.offload), setting.gpus),
    )


def make_model(setting: Setting) -> Any:
    """Return a random model of the shape on the card, as `load_for_training` would return a real one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from finetune_trainer.model.adapters import attach
    from finetune_trainer.model.build import device, hold_trained

    torch.manual_seed(0)  # each process makes the same
    shape = dict(SHAPES[setting.shape])
    config = AutoConfig.for_model(shape.pop("model_type"), max_position_embeddings=8192, pad_token_id=0, **shape)
    dtype = torch.float32 if setting.method == _F and not setting.zero else torch.bfloat16
    partitioned = setting.zero == PARTITIONED_WEIGHTS
    with nullcontext() if partitioned and setting.method != _Q else device():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    if setting.method == _Q:
        quantise(model, storage=dtype if partitioned else torch.uint8)
        model.to("cpu" if partitioned else device())
    if setting.recompute:
        model.gradient_checkpointing_enable()
    if setting.method == _F:
        return model
    tuned = attach(model, Lora(rank=setting.rank), alpha=setting.rank, seed=0, quantised=setting.method == _Q)
    if setting.zero:
        hold_trained(tuned, dtype=dtype)
    return tuned


def quantise(model: Any, *, storage: Any) -> None:
    """Put every linear layer but the head into NF4 on the card, as bitsandbytes does on loading."""
    import bitsandbytes as bnb
    import torch

    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        with torch.device("meta"):
            layer = bnb.nn.Linear4bit(
                module.in_features, module.out_features, module.bias is not None, compute_dtype=torch.bfloat16,
                compress_statistics=True, quant_type="nf4", quant_storage=storage,
            )  # fmt: skip
        weight = module.weight.data
        layer.weight = bnb.nn.Params4bit(
            weight.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True, quant_storage=storage
        ).to(weight.device)
        if module.bias is not None:
            layer.bias = module.bias
        model.set_submodule(name, layer)
    model.is_loaded_in_4bit = True  # PEFT asks


def resolved_of(setting: Setting) -> Any:
    """Return what prepare would have resolved."""
    from tests.support.prepared import make_resolved

    return make_resolved(
        precision=Precision.BFLOAT16, total_steps=2, batch_size=2 * setting.micro_batch * setting.gpus,
        zero_stage=setting.zero, offload=setting.offload,
        micro_batch_size=setting.micro_batch, max_sequence_length=setting.length, packing=setting.packing,
        gradient_checkpointing=setting.recompute, lora_alpha=setting.rank, eval_every_steps=1000, learning_rate=1e-5,
    )  # fmt: skip


def make_loop(setting: Setting, folder: Path) -> Any:
    """Return the trainer's loop over examples of the full length."""
    import torch
    from datasets import Dataset

    from finetune_contract.prepared import DatasetSummary, Estimate, Prepared
    from finetune_trainer.data.dataset import Data
    from finetune_trainer.model.build import hold_trained
    from finetune_trainer.parallel.zero import loading, sharing_settings
    from finetune_trainer.training.arguments import loop_arguments
    from finetune_trainer.training.loop import Loop
    from tests.support.prepared import UID, make_config

    vocab = int(SHAPES[setting.shape]["vocab_size"])
    generator = torch.Generator().manual_seed(0)
    count = 4 * setting.micro_batch * setting.gpus
    ids = torch.randint(3, vocab, (count, setting.length), generator=generator).tolist()
    ids[1::2] = [row[: -setting.length // 8] for row in ids[1::2]] if not setting.packing else ids[1::2]
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    resolved = resolved_of(setting)
    summary = DatasetSummary(
        format=DatasetFormat.TEXT, examples=len(ids), train_examples=len(ids), validation_examples=0, train_tokens=0,
        loss_tokens=0, longest=setting.length, truncated=0, dropped=0, duplicates=0,
    )  # fmt: skip
    prepared = Prepared(
        job_uid=UID, config_hash="", dataset=summary, estimate=Estimate(per_gpu_bytes=1), resolved=resolved,
        pad_token_id=0, shards=(), held_out="", first_example="",
    )  # fmt: skip
    config = make_config(output_uri="file:///out", model_uri="file:///model", method=setting.method)
    sharing = sharing_settings(config, resolved, micro_batch=setting.micro_batch)
    with loading(None if setting.method == _Q else sharing):
        model = make_model(setting)
    loop = Loop(
        model=model,
        tokenizer=tokenizer(folder),
        data=Data(train=rows, validation=[], questions=[]),
        prepared=prepared,
        arguments=loop_arguments(
            config, resolved, micro_batch=setting.micro_batch, folder=folder / "loop", sharing=sharing
        ),
        flatten=setting.packing,
    )
    if not sharing:
        hold_trained(model)
    return loop


def tokenizer(folder: Path) -> Any:
    """Return some tokenizer: the loop wants one, and its examples are ids already."""
    from transformers import AutoTokenizer

    from tests.support.prepared import tiny_model

    return AutoTokenizer.from_pretrained(tiny_model(folder / "tiny"))


def measure(setting: Setting) -> dict[str, Any]:
    """Train two steps; return the figures in bytes."""
    import torch

    found: dict[str, Any] = asdict(setting)
    with tempfile.TemporaryDirectory(prefix="estimate-") as scratch:
        try:
            loop = make_loop(setting, Path(scratch))
            gc.collect()
            torch.cuda.empty_cache()
            found["before"] = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            loop.train()
            free, total = torch.cuda.mem_get_info()
            found["peak"] = torch.cuda.max_memory_allocated()
            found["reserved"] = torch.cuda.max_memory_reserved()
            found["beside"] = total - free - torch.cuda.memory_reserved()
            found["loss"] = round(loop.state.log_history[-1]["train_loss"], 5)
            found["seconds"] = round(loop.state.log_history[-1]["train_runtime"], 1)
            found["parameters"] = sum(p.numel() for p in loop.model.parameters())
            found["trained"] = sum(p.numel() for p in loop.model.parameters() if p.requires_grad)
        except torch.OutOfMemoryError as error:
            found["error"] = str(error)[:200]
    loop = None
    gc.collect()
    torch.cuda.empty_cache()
    return found


def measure_shape(name: str) -> None:
    """Measure all settings of one shape in this process; one JSON line each."""
    for setting in (one for one in SETTINGS if one.shape == name):
        print(json.dumps(measure(setting)), flush=True)


def measure_shared(number: int) -> None:
    """Measure one setting of SHARED in this process, one of its ranks; the first prints the JSON line."""
    from finetune_trainer.parallel.distributed import join, world

    join()
    found = measure(SHARED[number])
    if world().first:
        print(json.dumps(found), flush=True)


def start_ranks(number: int) -> list[str]:
    """Measure one setting of SHARED in as many processes as it has GPUs; return the JSON lines."""
    gpus = SHARED[number].gpus
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29600 + number), "WORLD_SIZE": str(gpus)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.estimate_bench", "--shared", str(number)],
            env={**os.environ, **({**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} if gpus > 1 else {})},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(gpus)
    ]
    said = [rank.communicate()[0] for rank in ranks]
    return [line for text in said for line in text.splitlines() if line.startswith("{")]


def measure_all(shapes: list[str], out: Path) -> None:
    """Measure in a process a shape, so that one shape's fragments are not the next one's."""
    for name in shapes:
        command = [sys.executable, "-m", "benchmarks.estimate_bench", "--shape", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        with out.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)
        if done.returncode:
            print(f"{name}: exit {done.returncode} after {len(lines)} settings", file=sys.stderr)


def rows(file: Path) -> Iterator[tuple[Setting, dict[str, Any]]]:
    """Yield each measured setting with its figures."""
    names = Setting.__dataclass_fields__
    for line in file.read_text().splitlines():
        found = json.loads(line)
        if "peak" in found:
            yield Setting(**{key: value for key, value in found.items() if key in names}), found


def table(file: Path) -> int:
    """Print each measured peak beside the estimate; return how many are outside the promise."""
    columns = ("shape", "method", "length", "micro-batch", "recompute", "packed", "peak GB", "estimate GB", "off",
               "reserved / peak", "context GB")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    outside = 0
    for setting, found in rows(file):
        told = predicted(setting)
        off = told / found["peak"] - 1
        outside += not -0.05 <= off <= 0.10
        cells = (
            setting.shape, method_of(setting),
            setting.length, setting.micro_batch, "yes" if setting.recompute else "", "yes" if setting.packing else "",
            f"{found['peak'] / 1e9:.2f}", f"{told / 1e9:.2f}", f"{off:+.1%}",
            f"{found['reserved'] / found['peak']:.3f}", f"{found['beside'] / 1e9:.2f}",
        )  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |")
    return outside


def method_of(setting: Setting) -> str:
    """Name the method with what is unusual about it."""
    parts = [setting.method]
    if setting.rank != Lora().rank:
        parts.append(f"rank {setting.rank}")
    if setting.zero:
        parts.append(f"ZeRO-{setting.zero} on {setting.gpus}")
    elif setting.gpus > 1:
        parts[0] += f" on {setting.gpus}"
    if setting.offload != "none":
        parts.append(f"offload {setting.offload}")
    return ", ".join(parts)


def predicted(setting: Setting) -> int:
    """Return the estimate of the peak allocated, in bytes: without what the allocator and the driver add."""
    shape = ModelShape.from_config_json({"max_position_embeddings": 8192, **SHAPES[setting.shape]})
    found = estimate(shape, tuning_of(setting))
    return found.per_gpu_bytes - found.breakdown["runtime"]


def main() -> int:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("estimate.jsonl"))
    parser.add_argument("--shapes", nargs="+", default=[name for name in SHAPES if name != "tiny"])
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    parser.add_argument("--shared", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--share", nargs="*", metavar="METHOD", help="what two GPUs share out")
    parser.add_argument("--table", type=Path, nargs="?", const=RESULTS)
    options = parser.parse_args()
    if options.table:
        return int(table(options.table) > 0)
    if options.shape:
        measure_shape(options.shape)
    elif options.shared is not None:
        measure_shared(options.shared)
    elif options.share is not None:
        for number, setting in enumerate(SHARED):
            if options.share and setting.method not in options.share:
                continue
            with options.out.open("a") as file:
                file.writelines(f"{line}\n" for line in start_ranks(number))
    else:
        measure_all(options.shapes, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
