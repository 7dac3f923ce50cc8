"""DeepSpeed's ZeRO under TRL's loop: every process holds a share of optimizer, gradients and, from stage 3 on, weights.

Its engine stands before the first pass of any kind. From stage 3 on no process has a whole weight: the base model's
measurement and the dry run need the engine as the steps do. Trainer would make one at every `train` and destroy the
one before.

Rajbhandari et al. 2020 (arXiv:1910.02054); Ren et al. 2021 (arXiv:2101.06840) for what lies in the node's memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer import SCHEDULER_NAME
from trl.models.utils import add_hooks, remove_hooks

from finetune_contract.deepspeed_spec import PARTITIONED_WEIGHTS, Offload
from finetune_contract.nested import laid_over
from finetune_contract.prepared import Resolved
from finetune_contract.run_config import RunConfig
from finetune_contract.sharing import BUCKET, LIVE
from finetune_contract.spec import Precision
from finetune_trainer.model.adapters import has_adapters, load_adapters, save_adapters
from finetune_trainer.model.build import device, save_weights
from finetune_trainer.model.principal import make_plain
from finetune_trainer.parallel import zero_state
from finetune_trainer.parallel.deepspeed_config import own_config
from finetune_trainer.parallel.distributed import pass_in_step, world
from finetune_trainer.parallel.ranked import RankedTrainer


def _connect() -> None:
    """Let DeepSpeed use the group of processes that `distributed.join` has made, or one of this process alone."""
    if not distributed.is_initialized():
        # accelerate takes a process without these for one that no launcher has started.
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store = distributed.HashStore()  # type: ignore[attr-defined]  # torch exports it without saying so
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    import deepspeed

    # A faster path between processes of one CPU, compiled when first used: the image has no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def sharing_settings(config: RunConfig, resolved: Resolved, *, micro_batch: int) -> dict[str, Any] | None:
    """Return DeepSpeed's configuration, and connect it; None where nothing is shared out. Raises CONFIG_INVALID."""
    if not resolved.zero_stage:
        return None
    _connect()
    return laid_over(_settings(config, resolved, micro_batch=micro_batch), own_config(config.spec, resolved))


def one_batch_a_step(settings: dict[str, Any], *, share: int) -> dict[str, Any]:
    """Return the configuration where Trainer sees a step of one batch, of so many examples a process, and cuts it."""
    return settings | {"gradient_accumulation_steps": 1, "train_micro_batch_size_per_gpu": share}


def _settings(config: RunConfig, resolved: Resolved, *, micro_batch: int) -> dict[str, Any]:
    bfloat16 = resolved.precision is Precision.BFLOAT16
    return {
        "zero_optimization": _sharing(resolved, on_gpu=device().type == "cuda"),
        "bf16": {"enabled": bfloat16},
        "fp16": {"enabled": False},
        # Gradients of micro-batches are added up in float32: in bfloat16 small ones would be lost beside the sum.
        "data_types": {"grad_accum_dtype": "fp32"},
        "gradient_clipping": config.spec.hyperparameters.max_grad_norm,
        "gradient_accumulation_steps": resolved.batch_size // (micro_batch * world().size),
        "train_batch_size": resolved.batch_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own CPU Adam is compiled when first used; torch's fused one is compiled already.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }


def _sharing(resolved: Resolved, *, on_gpu: bool) -> dict[str, Any]:
    stage, away = resolved.zero_stage, {"device": "cpu", "pin_memory": on_gpu}
    sharing: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
    }
    if resolved.offload is not Offload.NONE:
        sharing["offload_optimizer"] = away
    if stage == PARTITIONED_WEIGHTS:
        sharing |= {
            "stage3_prefetch_bucket_size": LIVE // 2,
            "stage3_max_live_parameters": LIVE,
            "stage3_max_reuse_distance": LIVE,
            "stage3_param_persistence_threshold": "auto",  # norms and biases stay: transformers knows their sizes
        }
        if resolved.offload is Offload.ALL:
            sharing["offload_param"] = away
    return sharing


@contextmanager
def loading(settings: dict[str, Any] | None) -> Iterator[None]:
    """Have models that are loaded inside partitioned while they are loaded, if the settings say so."""
    if settings is None:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    held = HfDeepSpeedConfig(settings)  # transformers looks at it for as long as it lives
    yield
    del held


def save_gathered(model: Any, folder: Path) -> None:
    """Write partitioned weights as `model.save_weights` writes whole ones; all processes call it."""
    adapters = has_adapters(model)
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not adapters:
            with zero_state.gathered([parameter]):
                if world().first:
                    state[name] = parameter.detach().cpu().clone()
    if not world().first:
        return
    if adapters:
        save_adapters(model, folder, state)
    else:
        buffers, kept = dict(model.named_buffers()), model.state_dict().keys()
        model.save_pretrained(folder, state_dict=state | {name: buffers[name] for name in buffers if name in kept})


def put_gathered(model: Any, folder: Path) -> None:
    """Put weights that the first process has in a folder into a partitioned model; all processes call it."""
    saved = _saved_weights(folder) if world().first else {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with zero_state.gathered([parameter], changed=True):
                if world().first:
                    # PEFT leaves the adapter's name out.
                    parameter.data.copy_(saved[name.replace(".default.", ".")])


def _saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


class ZeroTrainer(RankedTrainer):
    """RankedTrainer whose processes share the model's state, where the arguments say so."""

    _wrapped: Any = None

    @property
    def optimized(self) -> list[torch.Tensor]:
        """What this process's optimizer holds state of."""
        if self.shares_state:
            return zero_state.shares(self._wrapped)
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def shares_state(self) -> bool:
        """Whether the processes share the optimizer's state out, or more."""
        return bool(self.is_deepspeed_enabled)

    @property
    def shares_weights(self) -> bool:
        """Whether no process has a whole weight: every pass is then made by all of them, in step."""
        return self.shares_state and self._wrapped.zero_optimization_partition_weights()

    def start_engine(self) -> None:
        """Share the model's state out to the processes."""
        if not self.shares_state:
            return
        settings = self.args.hf_deepspeed_config
        if settings.is_zero3() and getattr(self.model, "is_loaded_in_4bit", False):
            from finetune_trainer.model.quantised import share_quantised

            share_quantised(self.model, settings.config)
        self._wrapped, _ = super()._prepare_for_training(self.args.max_steps, None, None)
        self.accelerator.free_memory = lambda *objects: objects  # it would destroy the engine when `train` begins
        if self.shares_weights:
            pass_in_step(self._whole_weights)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        if self._wrapped is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)  # the scheduler alone, with DeepSpeed
            for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
                group["lr"] = rate
        self.callback_handler.train_dataloader = train_dataloader
        return self._wrapped, train_dataloader

    def try_pass(self, batch: dict[str, Any], counted: Any) -> Any:
        """Pass a batch of so many counted tokens forward and backward, for its memory; return the loss."""
        if not self.shares_state:
            return self.training_step(self.model, batch, counted)
        self.accelerator.gradient_state._set_sync_gradients(False)
        try:
            loss = self.compute_loss(self._wrapped, self._prepare_inputs(batch), num_items_in_batch=counted)
            # The engine keeps sums of gradients, which zeros do not change.
            self.accelerator.backward(0.0 * loss, scale_wrt_gas=False)
        finally:
            self.accelerator.gradient_state._set_sync_gradients(True)
        return loss.detach()

    def save_weights(self, folder: Path) -> None:
        """Write what is trained, as the first process's weights; all processes call it."""
        if self.shares_weights:
            self._let_go()
            save_gathered(self.model, folder)
        elif world().first:
            save_weights(self.model, folder)

    def save_result(self, folder: Path) -> None:
        """Write what was trained for everyone: an adapter belongs to the base model as the user has it."""
        self.save_weights(folder)
        if world().first:
            make_plain(folder)

    def stop_engine(self) -> None:
        """Share nothing any more: models are loaded whole from here on."""
        if self.shares_state:
            self._wrapped.destroy()
            unset_hf_deepspeed_config()

    def put_weights(self, folder: Path) -> None:
        """Give every process the weights that the first one has in a folder."""
        if self.shares_weights:
            self._let_go()
            put_gathered(self.model, folder)
            return
        if world().first:
            self._load_weights(folder)
        world().copy_from_first(self.model)

    def save_state(self, folder: Path) -> None:
        """Write weights, optimizer and scheduler; all processes call it."""
        if self.shares_state:
            self._let_go()
            zero_state.save(self._wrapped, folder)
            if world().first:
                torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)
        elif world().first:
            save_weights(self.model, folder)
            self._save_optimizer_and_scheduler(str(folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *_: Any, **__: Any) -> None:
        if self.shares_state:
            self._let_go()
            zero_state.load(self._wrapped, Path(resume_from_checkpoint))
        else:
            self._load_weights(Path(resume_from_checkpoint))

    @contextmanager
    def _whole_weights(self) -> Iterator[None]:
        """Have every process hold all weights inside, for passes without gradients, if each has room for them."""
        if not min(world().gather(zero_state.fits_whole(self.model))):
            yield
            return
        self._let_go()
        with zero_state.gathered(list(self.model.parameters())):
            remove_hooks(self._wrapped)  # they would let go of each layer when it is passed
            try:
                yield
            finally:
                add_hooks(self._wrapped)

    def _let_go(self) -> None:
        """Drop weights that were gathered ahead for a next layer: what is under way can be neither read nor set."""
        self._wrapped.empty_partition_cache()  # below stage 3 there is none

    def _load_weights(self, folder: Path) -> None:
        if has_adapters(self.model):
            # Trainer would take `best/` for a second adapter, and train with both.
            load_adapters(self.model, folder)
        else:
            super()._load_from_checkpoint(str(folder))
