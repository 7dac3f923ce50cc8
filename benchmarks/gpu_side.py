"""One side of `benchmarks.gpu` in a process of its own: `python -m benchmarks.gpu_side REQUEST`, a JSON file.

Libraries load while the side before still measures; then a line on standard input says that the card is free. That
waiting is left out of the time to the first step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

LEARNING_RATE = 1e-4
SEED = 42


def main() -> None:
    """Load, wait for the turn, train; the meter ends the process."""
    request = json.loads(Path(sys.argv[1]).read_text())
    train = {"ours": ours, "TRL": trl, "Unsloth": unsloth}[request["who"]]
    train(request)
    sys.exit("training ended without its last step's log")


def wait_for_turn(request: dict[str, Any]) -> float:
    """Wait, libraries loaded, and return when the process began, less the time that it waited."""
    import torch

    torch.zeros(0)
    ready = time.time()
    sys.stdin.readline()
    if request["memory_gb"] and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(request["memory_gb"] * 1e9 / total, 1.0))
    return float(os.environ["GPU_BENCH_BEGAN"]) + time.time() - ready


def ours(request: dict[str, Any]) -> None:
    """Run the train stage as its container does, its micro-batch and all else chosen by itself."""
    from finetune_trainer.__main__ import LIBRARY_DEFAULTS

    os.environ.update(LIBRARY_DEFAULTS)  # libraries read them when they are imported
    import peft  # noqa: F401 - what the stage imports first
    import trl  # noqa: F401

    if request["base"] == "nf4":
        import bitsandbytes  # noqa: F401
    from benchmarks.gpu_meter import GpuMeter
    from benchmarks.metered_stage import measure
    from finetune_trainer.fast.kernels import attention_later

    if request["long_run"]:
        vars(attention_later)["WORTH_SECONDS"] = 0.0
    began = wait_for_turn(request)
    meter = GpuMeter(Path(request["out"]), warm_up=request["warm_up"], began=began, tokens=None)
    sys.exit(f"the train stage ended with {measure(meter)}")


def trl(request: dict[str, Any]) -> None:
    """Run the script of TRL's, PEFT's and bitsandbytes' guides."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    if request["base"] == "nf4":
        import bitsandbytes  # noqa: F401
    began = wait_for_turn(request)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        request["model"], dtype=torch.bfloat16, device_map={"": 0} if torch.cuda.is_available() else None,
        quantization_config=quantization if request["base"] == "nf4" else None,
    )  # fmt: skip
    trainer = SFTTrainer(
        model, args=SFTConfig(**_arguments(request), optim="adamw_torch"), train_dataset=_rows(request),
        processing_class=AutoTokenizer.from_pretrained(request["model"]),
        peft_config=LoraConfig(
            r=request["rank"], lora_alpha=request["rank"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )  # fmt: skip
    _metered(trainer, request, began).train()


def unsloth(request: dict[str, Any]) -> None:
    """Run the script of Unsloth's guide, with the settings of the request."""
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    FastLanguageModel = import_module("unsloth").FastLanguageModel  # noqa: N806 - before trl, as it asks for
    import torch
    from trl import SFTConfig, SFTTrainer

    began = wait_for_turn(request)
    recompute = "unsloth" if request["checkpointing"] else False
    model, tokenizer = FastLanguageModel.from_pretrained(
        request["model"], max_seq_length=request["longest"], dtype=torch.bfloat16,
        load_in_4bit=request["base"] == "nf4", use_gradient_checkpointing=recompute, fix_tokenizer=False,
    )  # fmt: skip
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = FastLanguageModel.get_peft_model(
        model, r=request["rank"], lora_alpha=request["rank"], lora_dropout=0, bias="none", target_modules=layers,
        use_gradient_checkpointing=recompute, random_state=SEED,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=_rows(request),
        args=SFTConfig(**_arguments(request), optim="adamw_8bit"),
    )  # fmt: skip
    _metered(trainer, request, began).train()


def _rows(request: dict[str, Any]) -> Any:
    from datasets import load_dataset

    return load_dataset("parquet", data_files=request["shards"], split="train").select_columns(["input_ids", "labels"])


def _arguments(request: dict[str, Any]) -> dict[str, Any]:
    """Return what both peers are told."""
    import torch

    return {
        "output_dir": request["out"] + ".d",
        "max_steps": request["steps"],
        "per_device_train_batch_size": request["micro_batch"],
        "gradient_accumulation_steps": request["batch"] // request["micro_batch"],
        "gradient_checkpointing": request["checkpointing"],
        "packing": request["packing"],
        "learning_rate": LEARNING_RATE,
        "max_length": request["longest"],
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": SEED,
        "disable_tqdm": True,
    }


def _metered(trainer: Any, request: dict[str, Any], began: float) -> Any:
    """Return the trainer with the meter, which counts the tokens of batches as they are collated."""
    from benchmarks.gpu_meter import GpuMeter

    counts: list[int] = []
    collate = trainer.data_collator
    passes = request["batch"] // request["micro_batch"]

    def counting(rows: list[dict[str, Any]]) -> Any:
        counts.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    def tokens(first: int, last: int) -> float:
        return sum(counts[passes * (first + 1) : passes * (last + 1)])

    trainer.data_collator = counting
    trainer.add_callback(GpuMeter(Path(request["out"]), warm_up=request["warm_up"], began=began, tokens=tokens))
    return trainer


if __name__ == "__main__":
    main()
