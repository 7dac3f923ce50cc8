"""TRL's training loop, with what is ours in it: what is measured, what is kept, and when it must stop.

`SFTTrainer` computes steps: the loss is the sum over all counted tokens of a batch divided by their number, over all
micro-batches of a step, so that the micro-batch never changes a result. This subclass replaces what TRL does at the
edges: the held-out loss is a mean over tokens (TRL: over batches), a checkpoint holds only what a resume needs, and
the best weights so far travel with it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig

from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import Usage
from finetune_contract.prepared import Prepared
from finetune_contract.spec import Precision
from finetune_trainer.checkpoints.checkpoint import CheckpointUploader
from finetune_trainer.data.dataset import Data, collator
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.evaluate import held_out_loss
from finetune_trainer.fast.micro_batches import StepCollator
from finetune_trainer.fast.trainer import FlatTrainer
from finetune_trainer.outputs.summary import trained_tokens
from finetune_trainer.parallel.distributed import FETCHING, told_to_stop, world
from finetune_trainer.parallel.ranked import shareable
from finetune_trainer.reporting.figures import GpuClock
from finetune_trainer.training.best import BEST, BEST_RECORD, Best, move_best
from finetune_trainer.training.head import score_counted_tokens
from finetune_trainer.training.held_out import stop_reason
from finetune_trainer.training.optimizers import raise_second_rates

if TYPE_CHECKING:
    from finetune_trainer.fast.path import FastPath

STATE = "trainer_state.json"
USAGE = "usage.json"


class _StopEvaluationError(Exception):
    """The signal came during a measurement inside training: the step's checkpoint is due, not the measurement."""


class _StopBeforeTheFirstStepError(Exception):
    """The measurement that a resumed run begins with says that it is over; Trainer would train a step first."""


class Loop(FlatTrainer):
    """One run's training loop."""

    control: TrainerControl
    frozen_base: str | None = None
    """How the frozen base model is held, for the results."""

    def __init__(
        self,
        *,
        model: Any,
        tokenizer: Any,
        data: Data,
        prepared: Prepared,
        arguments: SFTConfig,
        flatten: bool,
        patience: int | None = None,
        second_rate: float = 1.0,
        fast: FastPath | None = None,
        micro_batch: int | None = None,
    ) -> None:
        """Make it; `micro_batch` are the examples of a pass, by which the fast path counts its tokens."""
        self.fast = fast
        self.micro_batch = micro_batch or arguments.per_device_train_batch_size
        self.tokens_a_pass = self.micro_batch * prepared.resolved.max_sequence_length if fast else None
        self._prepared, self._data, self._patience = prepared, data, patience
        self._second_rate = second_rate
        self._resumed_at: int | None = None
        self.uploader: CheckpointUploader | None = None
        self.gpu_clock: GpuClock | None = None
        self.best: Best | None = None
        score_counted_tokens()
        routing = vars(model.config.get_text_config()).get("router_aux_loss_coef")
        super().__init__(
            model=model,
            args=arguments,
            processing_class=tokenizer,
            train_dataset=shareable(data.train, pad_token_id=prepared.pad_token_id),
            eval_dataset=data.train.select([0]),  # asked for, but `evaluate` measures on its own
            data_collator=self._collator(flatten=flatten),
        )
        self.remove_callback(PrinterCallback)
        self.share_batches(len(data.train))
        self.model.register_forward_pre_hook(_without_needless_mask, with_kwargs=True)
        if routing is not None:  # TRL writes what it was told into the model's configuration, which is exported
            model.config.get_text_config().router_aux_loss_coef = routing
        # With PEFT and ZeRO-3 TRL asks for reentrant recomputation: DeepSpeed (its PR 8148) needs it no more, and with
        # it the frozen weights of every layer stay gathered to the end of the backward pass.
        self.args.gradient_checkpointing_kwargs = {"use_reentrant": False}
        self.start_engine()

    @property
    def folder(self) -> Path:
        """The working folder of the loop."""
        return Path(self.args.output_dir)

    @property
    def recomputes(self) -> bool:
        """Whether the backward pass computes activations again."""
        return self.fast.recompute if self.fast else bool(self.args.gradient_checkpointing)

    @property
    def precision(self) -> Precision:
        """The precision that steps are computed in."""
        return self._prepared.resolved.precision

    def forget_steps(self) -> None:
        """Drop gradients and statistics of passes that were no steps."""
        super().forget_steps()
        self.model.zero_grad(set_to_none=True)
        self._metrics["train"].clear()
        self._total_train_tokens = 0

    def run(self, checkpoint: Path | None) -> None:
        """Train to the last step, from a restored checkpoint if there is one."""
        if checkpoint is None:
            self.train()
            return
        self._adopt_best(checkpoint)
        self._adopt_usage(checkpoint)
        state = TrainerState.load_from_json(str(checkpoint / STATE))
        if state.global_step < self.args.max_steps and not stop_reason(state.log_history, patience=self._patience):
            self._train_on(checkpoint, state)
            return
        # The last step is done: Trainer would go on to the end of the epoch.
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        if self._measurement_is_due(state):
            self.evaluate()

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the held-out loss, and keep the weights if they are the best so far."""
        try:
            metrics = self.measure(safe_point=_stop_evaluation_if_told)
        except _StopEvaluationError:
            self.control.should_evaluate = False  # the next attempt measures at its start
            self.control.should_save = self.control.should_training_stop = True
            return {}
        loss = metrics["eval_loss"]
        require_finite(loss, f"held-out loss at step {self.state.global_step}")
        if self.best is None or loss < self.best.loss:
            self._keep_as_best(loss)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._stop_if_it_no_longer_falls()
        return metrics

    @property
    def stopped_early(self) -> str | None:
        """Why the run ended before its last step, if it did."""
        reached_end = self.state.global_step >= self.args.max_steps
        return None if reached_end else stop_reason(self.state.log_history, patience=self._patience)

    def measure(self, *, safe_point: Callable[[], None]) -> dict[str, float]:
        """Return what is measured on the held-out part: `eval_loss`, and more where there is more."""
        rows = self._data.validation
        return {"eval_loss": held_out_loss(self.model, rows, prepared=self._prepared, safe_point=safe_point)}

    def _collator(self, *, flatten: bool) -> Any:
        """Return what makes batches of examples."""
        if self.tokens_a_pass:
            return StepCollator(tokens=self.tokens_a_pass, pad_token_id=self._prepared.pad_token_id)
        return collator(self._prepared, flatten=flatten)

    def load_best(self) -> None:
        """Put the best weights into the model; those of the last step are there if nothing was measured."""
        if self.best and self.best.step != self.state.global_step:
            world().barrier(limit=FETCHING)  # the first rank may still wait for storage or a tracker
            self.put_weights(self.folder / BEST)

    def _train_on(self, checkpoint: Path, state: TrainerState) -> None:
        self._resumed_at = state.global_step
        self._total_train_tokens = trained_tokens(state.log_history) or 0
        self.args.eval_on_start = self._measurement_is_due(state)
        try:
            self.train(resume_from_checkpoint=str(checkpoint))
        except _StopBeforeTheFirstStepError:
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)

    def _stop_if_it_no_longer_falls(self) -> None:
        if self.stopped_early is None:
            return
        if self.state.global_step == self._resumed_at:
            raise _StopBeforeTheFirstStepError
        self.control.should_save = self.control.should_training_stop = True

    def create_optimizer(self, model: Any = None) -> Any:
        """Create it, the learning rates of the adapters' second matrices as LoRA+ has them."""
        new = self.optimizer is None
        super().create_optimizer(model)
        if new and self._second_rate != 1.0:
            raise_second_rates(self.optimizer, self.model, ratio=self._second_rate)
        return self.optimizer

    def _adopt_best(self, checkpoint: Path) -> None:
        if not (checkpoint / BEST_RECORD).is_file():
            return
        self.best = Best.model_validate_json((checkpoint / BEST_RECORD).read_bytes())
        if world().local_rank == 0:
            move_best(checkpoint, self.folder / BEST)
        world().barrier()

    def _adopt_usage(self, checkpoint: Path) -> None:
        if self.gpu_clock and (checkpoint / USAGE).is_file():
            self.gpu_clock.carry(Usage.model_validate_json((checkpoint / USAGE).read_bytes()).gpu_seconds or 0.0)

    def _measurement_is_due(self, state: TrainerState) -> bool:
        step, every = state.global_step, int(self.args.eval_steps)
        measured = any("eval_loss" in entry and entry["step"] == step for entry in state.log_history)
        return not measured and (step % every == 0 or step >= self.args.max_steps)

    def _keep_as_best(self, loss: float) -> None:
        self.best = Best(step=self.state.global_step, loss=loss)
        if world().first:
            shutil.rmtree(self.folder / BEST, ignore_errors=True)
        self.save_weights(self.folder / BEST)

    def _save_checkpoint(self, *_: Any) -> None:
        """Write what a resume needs, and hand it to the uploader (instead of keeping it in the working folder)."""
        folder = self.folder / f"checkpoint-{self.state.global_step}"
        random_states = self.random_states()
        self.save_state(folder)
        if not world().first:
            return
        for name, content in random_states.items():
            (folder / name).write_bytes(content)
        self.state.save_to_json(str(folder / STATE))
        if self.gpu_clock and (used := self.gpu_clock.seconds()) is not None:
            (folder / USAGE).write_text(Usage(gpu_seconds=used).to_json())
        if self.best:
            (folder / BEST_RECORD).write_text(self.best.to_json())
            # What ZeRO writes for a resume are no weights to go back to.
            if self.best.step != self.state.global_step or self.shares_state:
                shutil.copytree(self.folder / BEST, folder / BEST)
        if self.uploader:
            self.uploader.submit(folder, self.state.global_step)


def require_finite(value: float, what: str) -> None:
    """Raise LOSS_NOT_FINITE unless it is a number to go on with."""
    if not math.isfinite(value):
        raise TrainerError(
            ExitCode.LOSS_NOT_FINITE,
            f"The {what} is {value}: lower hyperparameters.learningRate, or set precision to float32.",
        )


def _stop_evaluation_if_told() -> None:
    if told_to_stop():
        raise _StopEvaluationError


def _without_needless_mask(_model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Take the mask from a training pass: padding stands at the end, and no token looks at a later one.

    With a mask SDPA leaves its fast kernels, repeats keys and values for each head and keeps the mask of every layer.
    """
    if kwargs.get("fused_lm_head"):
        kwargs.pop("attention_mask", None)
    return args, kwargs
