"""What both sides of a case train: a random model of a published shape, and examples made from a seed."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from benchmarks.estimate_bench import quantise
from benchmarks.estimate_settings import SHAPES
from benchmarks.gpu_loop import rows_of
from benchmarks.ranks.cases import INSTRUCTIONS, SPEED, Case, Scale

SEED = 0
LEARNED_BATCH = 16


def shape_of(case: Case, scale: Scale) -> str:
    """Return the name of the model's shape."""
    return scale.shape if case.kind == SPEED else scale.checkpoint_shape


def examples_a_gpu(data: str, scale: Scale) -> int:
    """Return the examples of a step on one GPU: a multiple of 16, where there are as many, for micro-batches."""
    if data != INSTRUCTIONS:
        return scale.tokens // scale.longest
    return scale.tokens // scale.mean // 16 * 16


def examples_a_step(case: Case, scale: Scale) -> int:
    """Return the examples of a step on all GPUs: a run that goes on with fewer must have the same."""
    return case.gpus * examples_a_gpu(case.data, scale) if case.kind == SPEED else LEARNED_BATCH


def lengths_of(data: str, scale: Scale, *, number: int) -> list[int]:
    """Return the examples' tokens: all of the full length, or lognormal as instructions are."""
    if data != INSTRUCTIONS:
        return [scale.longest] * number
    dice = random.Random(SEED)  # noqa: S311
    found = (int(dice.lognormvariate(math.log(scale.mean) - 0.32, 0.8)) for _ in range(number))
    return [min(max(one, 4), scale.longest) for one in found]


def rows(case: Case, scale: Scale, *, steps: int) -> Any:
    """Return random examples for so many steps; of instructions half of each is an answer, and counts."""
    lengths = lengths_of(case.data, scale, number=steps * examples_a_step(case, scale))
    vocabulary = int(SHAPES[shape_of(case, scale)]["vocab_size"])
    return rows_of(lengths, vocabulary=vocabulary, data="instr" if case.data == INSTRUCTIONS else "fixed")


def write_model_folder(folder: Path, shape: str) -> Path:
    """Write configuration and some tokenizer of a model; its weights are made where they are wanted."""
    from tests.support.prepared import save_tokenizer

    save_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({**SHAPES[shape], "max_position_embeddings": 8192}))
    return folder


def random_model(folder: Path, *, dtype: Any, on: Any, quantised: bool, storage: Any = None) -> Any:
    """Return a random model of a folder's configuration on a device (None: as DeepSpeed's loading has it)."""
    from contextlib import nullcontext

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(SEED)  # each process makes the same
    config = AutoConfig.for_model(**json.loads((folder / "config.json").read_text()), pad_token_id=0)
    with nullcontext() if on is None else torch.device(on):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if quantised:
        quantise(model, storage=storage or torch.uint8)
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        if on is not None:
            model.to(on)
    return model
