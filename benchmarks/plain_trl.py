"""The plain script: what a careful user writes with TRL, PEFT and bitsandbytes by their documentation.

    python -m benchmarks.plain_trl NAME MODEL DATA OUT

NAME is a method of `trainer_settings`, DATA a JSON Lines file, OUT the file for the figures. Numbers are those of the
other side. Where TRL's defaults are slower or take more (recomputation of activations, weights in float32 under
adapters, the reference model beside each DPO step), the better setting is taken.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.step_meter import StepMeter
from benchmarks.trainer_settings import BATCH, BETA, LONGEST, MICRO_BATCH, PLANNED, RANK, SEED, SETTINGS, Setting


def main() -> None:
    """Train."""
    name, model_folder, data, out = sys.argv[1:]
    setting = SETTINGS[name]
    trainer = make_trainer(setting, Path(model_folder), data, folder=f"{out}.d")
    trainer.add_callback(StepMeter(Path(out)))
    trainer.train()


def make_trainer(setting: Setting, model_folder: Path, data: str, *, folder: str) -> Any:
    """Return TRL's trainer for the method."""
    rows = load_dataset("json", data_files=data, split="train")
    model, tokenizer = load_model(setting, model_folder), AutoTokenizer.from_pretrained(model_folder)
    adapters = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    shared: dict[str, Any] = {
        "processing_class": tokenizer,
        "peft_config": adapters if setting.with_adapters else None,
    }
    if setting.preference:
        args = DPOConfig(beta=BETA, precompute_ref_log_probs=True, **arguments(setting, folder))
        return DPOTrainer(model, args=args, train_dataset=rows, **shared)
    tokenizer.chat_template = with_generation_marks(tokenizer.chat_template)
    args = SFTConfig(assistant_only_loss=True, **arguments(setting, folder))
    return SFTTrainer(model, args=args, train_dataset=rows, **shared)


def load_model(setting: Setting, folder: Path) -> Any:
    """Return the base model: frozen weights in the computing precision or NF4, trained ones in float32."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, setting.precision) if setting.with_adapters else torch.float32,
        quantization_config=quantization if setting.method == "QLoRA" else None,
    )


def arguments(setting: Setting, folder: str) -> dict[str, Any]:
    """Return the arguments of either trainer."""
    return {
        "output_dir": folder,
        "max_steps": PLANNED,
        "per_device_train_batch_size": MICRO_BATCH,
        "gradient_accumulation_steps": BATCH // MICRO_BATCH,
        "learning_rate": setting.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 1,
        "max_length": LONGEST,
        "bf16": setting.precision == "bfloat16",
        "gradient_checkpointing": False,
        "optim": "adamw_torch",
        "seed": SEED,
        "data_seed": SEED,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def with_generation_marks(template: str) -> str:
    """Return SmolLM2's chat template with the marks that TRL's assistant_only_loss asks for."""
    turn = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    if turn not in template:
        raise ValueError("not the template of SmolLM2")
    marked = (
        "{{'<|im_start|>' + message['role'] + '\n'}}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
        "{{ '\n' }}"
    )
    return template.replace(turn, marked)


if __name__ == "__main__":
    main()
