"""A case by the plain script: what a careful user writes with TRL, PEFT, bitsandbytes and accelerate.

Several GPUs as TRL's own configurations for `accelerate launch` have them (trl/accelerate_configs: multi_gpu, zero2,
zero3): the same variables are set here. Numbers are those of the other side; the rest is TRL's default, with
recomputation of activations, or without it (`plain-kept`), which TRL's documentation leaves to the user.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.ranks.cases import INSTRUCTIONS, PLAIN, Case, Scale
from benchmarks.ranks.meter import SpeedMeter
from benchmarks.ranks.setting import SEED, examples_a_gpu, lengths_of, random_model, rows, shape_of, write_model_folder

MICRO_BATCH = 2
"""The guide's."""
_ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
}
"""What `accelerate launch` makes of zero2.yaml and zero3.yaml."""


def measure_speed(case: Case, scale: Scale, *, folder: Path) -> None:
    """Train some steps, print the figures of them, and end the process."""
    import torch

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if case.stage:
        _use_zero(case.stage, on_gpu=on_gpu)
    place = folder / f"model-{os.environ.get('RANK', '0')}"
    place.mkdir(parents=True)
    trainer = make_trainer(case, scale, write_model_folder(place, shape_of(case, scale)), on_gpu=on_gpu)

    def facts(tokens_per_second: float) -> dict[str, Any]:
        return {
            "mfu": _mfu(case, scale, place, tokens_per_second) if on_gpu else None,
            "micro_batch": MICRO_BATCH,
            "recomputes": bool(trainer.args.gradient_checkpointing),
        }

    trainer.add_callback(SpeedMeter(warm_up=scale.warm_up, facts=facts))
    trainer.train()


def make_trainer(case: Case, scale: Scale, model_folder: Path, *, on_gpu: bool) -> Any:
    """Return TRL's trainer."""
    import torch
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    packing = case.data == INSTRUCTIONS
    share = scale.tokens // scale.longest
    args = SFTConfig(
        output_dir=str(model_folder / "out"), max_steps=scale.steps, per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=max(share // MICRO_BATCH, 1), learning_rate=1e-5, max_length=scale.longest,
        packing=packing, bf16=on_gpu, gradient_checkpointing=case.side == PLAIN, optim="adamw_torch_fused",
        seed=SEED, use_cpu=not on_gpu, ddp_backend=None if on_gpu or case.gpus == 1 else "gloo",
        dataloader_pin_memory=on_gpu, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    # After SFTConfig, which tells transformers of ZeRO-3.
    place = None if case.stage == 3 else torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model = random_model(model_folder, dtype=dtype, on=place, quantised=case.method == "QLoRA")
    adapters = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return SFTTrainer(
        model,
        args=args,
        # As many tokens as the steps want, whatever packing leaves out.
        train_dataset=rows(case, scale, steps=scale.steps + 1),
        processing_class=AutoTokenizer.from_pretrained(model_folder),
        peft_config=None if case.method == "Full" else adapters,
    )


def _use_zero(stage: int, *, on_gpu: bool) -> None:
    os.environ |= {
        **_ZERO,
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": str(stage == 3).lower(),
    }
    if not on_gpu:
        os.environ |= {"ACCELERATE_MIXED_PRECISION": "no", "DS_ACCELERATOR": "cpu"}
    import deepspeed

    if not on_gpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
    # Before SFTConfig: DeepSpeed would not know the batch's size with stage 3.
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)


def _mfu(case: Case, scale: Scale, model_folder: Path, tokens_per_second: float) -> float | None:
    """Return what the trainer would say of it."""
    from benchmarks.ranks.ours import config_of, summary
    from finetune_contract.prepared import Prepared
    from finetune_contract.spec import Precision
    from finetune_trainer.reporting.figures import efficiency
    from tests.support.prepared import make_resolved

    config = config_of(case, scale, steps=scale.steps, folder=model_folder)
    lengths = lengths_of(case.data, scale, number=scale.steps * case.gpus * examples_a_gpu(case.data, scale))
    known: dict[str, Any] = {
        "resolved": make_resolved(precision=Precision.BFLOAT16),
        "dataset": summary(lengths, case.data),
    }
    found = efficiency(config, Prepared.model_construct(**known), model_folder)
    return round(found.mfu(tokens_per_second), 4) if found else None
