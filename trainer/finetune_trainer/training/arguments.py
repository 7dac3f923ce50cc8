"""The arguments of TRL's loop: everything that matters is said, since its defaults are not Trainer's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from trl import SFTConfig

from finetune_contract.prepared import Resolved
from finetune_contract.run_config import RunConfig
from finetune_contract.spec import Precision
from finetune_trainer.environment import collective_timeout
from finetune_trainer.model.build import device
from finetune_trainer.parallel.distributed import world
from finetune_trainer.training.optimizers import transformers_name


def loop_arguments(
    config: RunConfig, resolved: Resolved, *, micro_batch: int, folder: Path, sharing: dict[str, Any] | None = None
) -> SFTConfig:
    """Return TRL's arguments; `sharing` are DeepSpeed's settings."""
    wanted = config.spec.hyperparameters
    on_gpu = device().type == "cuda"
    return SFTConfig(
        output_dir=str(folder),
        max_steps=resolved.total_steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=resolved.batch_size // (micro_batch * world().size),
        learning_rate=resolved.learning_rate,
        lr_scheduler_type="constant_with_warmup" if wanted.scheduler == "constant" else wanted.scheduler,
        warmup_steps=math.ceil(wanted.warmup_ratio * resolved.total_steps),
        weight_decay=wanted.weight_decay,
        max_grad_norm=wanted.max_grad_norm,
        optim=transformers_name(wanted.optimizer, on_gpu=on_gpu),
        bf16=resolved.precision is Precision.BFLOAT16,
        # The name of transformers 5.17, too, which newer ones call activation_checkpointing.
        gradient_checkpointing=resolved.gradient_checkpointing,
        seed=wanted.seed,
        data_seed=wanted.seed,
        use_cpu=not on_gpu,
        ddp_backend=None if on_gpu or world().size == 1 else "gloo",
        ddp_timeout=int(collective_timeout()),
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        dataloader_pin_memory=on_gpu,
        deepspeed=sharing,
        # The shards are tokenised and cut: nothing is left to prepare.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        # A mean over a micro-batch, so that its size would change the result; plain transformers has none either.
        router_aux_loss_coef=0.0,
        eval_strategy="steps",
        eval_steps=resolved.eval_every_steps,
        save_strategy="no",  # callbacks.py says when
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide a loss that is not finite behind the mean of those before
        report_to="none",  # tracking.py adds the callbacks
        run_name=f"{config.job.name}-run-{config.job.run}",
        disable_tqdm=True,
    )
