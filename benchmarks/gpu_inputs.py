"""What the sides of `benchmarks.gpu` read: a random checkpoint of a real shape, and examples of exact lengths.

    python -m benchmarks.gpu_inputs SHAPE FOLDER

The tokenizer has a token a word. Examples are prepared by our own stage, and its shards are what the peers read: all
sides train on the same token ids and labels.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_cases import RANK, SHAPES, Case, Data
from finetune_contract import paths

PAD, EOS, UNKNOWN = 0, 1, 2
WORDS = 16000
METHODS = {"bf16": "LoRA", "fp8": "LoRA", "nf4": "QLoRA"}
HELD_OUT = 2


def make_model(shape: str, folder: Path) -> None:
    """Write a random checkpoint in bfloat16, made on the card where there is one, with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = {"max_position_embeddings": 32768, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
    config = AutoConfig.for_model(**settings, **SHAPES[shape])
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="4GB")
    make_tokenizer(folder, words=min(WORDS, SHAPES[shape]["vocab_size"] - 3))


def make_tokenizer(folder: Path, *, words: int) -> None:
    """Write a tokenizer of one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {"<pad>": PAD, "<eos>": EOS, "<unk>": UNKNOWN, **{f"w{number}": number + 3 for number in range(words)}}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))  # noqa: S106 - no password
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=32768, **special).save_pretrained(folder)


def write_data(data: Data, *, steps: int, words: int, folder: Path) -> None:
    """Write the examples of some steps, and two to be held out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lengths, seed in (("train", data.lengths(steps), 1), ("held-out", [data.longest] * HELD_OUT, 2)):
        lines = (f"{json.dumps(one)}\n" for one in _examples(lengths, data.instructions, words=words, seed=seed))
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _examples(lengths: list[int], instructions: bool, *, words: int, seed: int) -> Iterator[dict[str, str]]:
    dice = random.Random(seed)  # noqa: S311
    for length in lengths:
        made = [f"w{number}" for number in dice.choices(range(words), k=length - 1)]  # and the end of text
        if instructions:
            half = length // 2
            yield {"prompt": " ".join(made[:half]), "completion": " " + " ".join(made[half:])}
        else:
            yield {"text": " ".join(made)}


def run_config(case: Case, *, steps: int, model: Path, folder: Path, gpu_memory: int | None) -> dict[str, Any]:
    """Return our stages' configuration: nothing is set but what makes the sides do the same work."""
    never = 10 * steps
    spec = {
        "method": METHODS[case.base],
        **({"quantization": {"type": "fp8"}} if case.base == "fp8" else {}),
        "model": {"uri": f"file://{model}"},
        "dataset": {
            "uri": f"file://{folder}/data/train.jsonl",
            "validation": {"uri": f"file://{folder}/data/held-out.jsonl"},
        },
        "output": {"uri": f"file://{folder}/out"},
        "lora": {"rank": RANK},
        "hyperparameters": {
            "maxSteps": steps, "batchSize": case.data.batch, "maxSequenceLength": case.data.longest,
            "precision": "bfloat16",
        },
        "checkpoint": {"everySteps": never},
        "evaluation": {"everySteps": never, "compareWithBase": False, "samples": {"everySteps": never}},
    }  # fmt: skip
    device = {"gpus": 1, "gpuMemoryBytes": gpu_memory} if gpu_memory else {}
    return {
        "job": {"name": "bench", "namespace": "bench", "uid": "bench"},
        "spec": spec,
        "device": device,
        "configHash": "bench",
    }


def environment(folder: Path) -> dict[str, str]:
    """Return where our stages find everything."""
    return {
        paths.ENV_CONFIG: str(folder / "config.json"),
        paths.ENV_WORK: str(folder / "work"),
        paths.ENV_CACHE: str(folder / "cache"),
        paths.ENV_TERMINATION_LOG: str(folder / "message"),
    }


def shards(folder: Path) -> list[str]:
    """Return the files of prepared training examples: columns `input_ids` and `labels`."""
    prepared = folder / "out" / "run-1" / paths.PREPARED_DIR
    return sorted(map(str, prepared.glob("train-*.parquet")))


if __name__ == "__main__":
    make_model(sys.argv[1], Path(sys.argv[2]))
