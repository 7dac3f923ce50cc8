"""Training steps on flat micro-batches by the fast path; where there is none, TRL's.

Trainer sees a step of one batch, a rank's share of the examples, and this cuts it: the number of passes follows from
the tokens. Nothing in a step waits for the GPU, and nothing between two: a step is logged while the GPU computes the
next one, unless something is to be done with its weights (15 ms that a GPU would wait).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.fast.micro_batches import MicroBatch, filler
from finetune_trainer.logs import log
from finetune_trainer.parallel.distributed import world
from finetune_trainer.parallel.zero import ZeroTrainer

if TYPE_CHECKING:
    from finetune_trainer.fast.path import FastPath


class Fetcher:
    """Takes the next step's batch from an epoch's iterator in a thread of its own: 20 ms that a GPU would wait."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        self._of: Iterator[Any] | None = None
        self._ahead: Future[list[Any]] | None = None

    def start(self) -> None:
        """Begin with the next batch of the iterator that was last asked, once."""
        if self._of is not None and self._ahead is None:
            self._ahead = self._thread.submit(_next, self._of, 1)

    def take(self, iterator: Iterator[Any], number: int) -> list[Any]:
        """Return the next batches, fewer at the end of an epoch. Raises what making them raises."""
        ahead = self._ahead.result() if self._ahead and self._of is iterator else []
        self._of, self._ahead = iterator, None
        return ahead + _next(iterator, number - len(ahead))


def _next(iterator: Iterator[Any], number: int) -> list[Any]:
    return list(islice(iterator, number))


def _on_the_way(figures: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Return figures in the host's memory, and the event after which they are there."""
    if figures.device.type != "cuda":
        return figures, None
    held = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True).copy_(figures, non_blocking=True)
    there = torch.cuda.Event()  # type: ignore[no-untyped-call]
    there.record()
    return held, there


@dataclass(frozen=True, slots=True)
class Unlogged:
    """A step that is done for the host, and perhaps not yet for the GPU."""

    figures: torch.Tensor
    """Loss and gradients' norm, on their way to the host."""
    there: Any
    """The event after which they are; None where they are already."""
    learning_rate: float
    tokens: int
    """Of this rank."""


class FlatTrainer(ZeroTrainer):
    """ZeroTrainer that passes micro-batches of a number of tokens, where there is a fast path."""

    fast: FastPath | None = None
    tokens_a_pass: int | None = None
    """Tokens of a micro-batch; None where it is a number of examples."""
    _passed = 0
    """Tokens of this rank since the last log."""
    _unlogged: Unlogged | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make it."""
        self._fetcher = Fetcher()
        super().__init__(*args, **kwargs)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Pass a step's examples forward and backward; return this rank's part of the loss."""
        if self.fast is None:
            found: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
            return found
        model.train()
        self.fast.step_begins(left=self.state.max_steps - self.state.global_step)
        total = torch.zeros((), device=self.args.device)
        micro_batches = self._as_many_everywhere(inputs["micro_batches"])
        last = len(micro_batches) - 1
        with self.fast.running():
            for number, one in enumerate(micro_batches):
                with self._synchronised(model, number == last):
                    total += self._pass(model, one.to(self.args.device), num_items_in_batch)
                self._fetcher.start()  # while the GPU is busy with what was just launched
                self._log_step_before()
        return total

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, *rest: Any, learning_rate: float | None = None, **named: Any
    ) -> None:
        """Keep what is to be logged until the next step is under way, unless something is due now."""
        if not self._can_log_later():
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, *rest, learning_rate=learning_rate, **named)
            return
        loss = self.accelerator.gather(tr_loss.detach()).mean()
        figures = torch.stack([loss, torch.as_tensor(grad_norm, device=loss.device, dtype=loss.dtype)])
        tr_loss.zero_()
        rate = self._get_learning_rate() if learning_rate is None else learning_rate
        self._unlogged = Unlogged(*_on_the_way(figures), rate, tokens=self._passed)
        self._passed = 0
        self.control.should_log = False
        self._globalstep_last_logged = self.state.global_step

    def _can_log_later(self) -> bool:
        """Whether the step is to be logged, and nothing else is to be done before the next one."""
        control = self.control
        due = control.should_evaluate or control.should_save
        ends = control.should_training_stop or control.should_epoch_stop
        goes_on = self.state.global_step < self.state.max_steps and not ends
        return self.fast is not None and not self.shares_state and control.should_log and goes_on and not due

    def _log_step_before(self) -> None:
        late, self._unlogged = self._unlogged, None
        if late is None:
            return
        if late.there is not None:
            late.there.synchronize()
        loss, grad_norm = late.figures.tolist()
        self._total_loss_scalar += loss
        begun, self._passed = self._passed, late.tokens
        self.log({"loss": loss, "grad_norm": grad_norm, "learning_rate": late.learning_rate})
        self._passed = begun

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return a step's batch, which was made during the step before, and the number of its counted tokens."""
        if self.fast is None:
            found: tuple[list[Any], Any] = super().get_batch_samples(epoch_iterator, num_batches, device)
            return found
        batches = self._fetcher.take(epoch_iterator, num_batches)
        return batches, self._get_num_items_in_batch(batches, device)

    def _pass(self, model: Any, micro_batch: MicroBatch, counted: Any, *, factor: float = 1.0) -> torch.Tensor:
        from finetune_trainer.fast.path import flat

        self._passed += micro_batch.tokens
        with self.compute_loss_context_manager(), flat(micro_batch):
            # The ranks' gradients are averaged.
            loss = model(micro_batch=micro_batch) * world().size / torch.as_tensor(counted).clamp(min=1)
            self.accelerator.backward(factor * loss)
        found: torch.Tensor = loss.detach()
        return found

    def _synchronised(self, model: Any, last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients with the last pass alone; where they are shared out, step with the last alone."""
        if self.shares_state:
            self.accelerator.gradient_state._set_sync_gradients(last)
            return nullcontext()
        return nullcontext() if last else self.accelerator.no_sync(model)

    def _as_many_everywhere(self, micro_batches: list[MicroBatch]) -> list[MicroBatch]:
        """Return the passes of a step: with shared gradients each is made by all ranks."""
        if not self.shares_state:
            return micro_batches
        missing = world().worst(len(micro_batches)) - len(micro_batches)
        return [filler()] * missing + micro_batches

    def try_pass(self, batch: dict[str, Any], counted: Any) -> Any:
        """Pass a batch forward and backward, for its memory; what a compiler cannot make right is not compiled.

        The same batch passes without a compiler, too, which recomputes then, so that it needs no more memory.
        """
        if self.fast is None or not self.fast.compiled:
            return self._pass_once(batch, counted)
        from finetune_trainer.fast.kernels.fp8 import dequantised

        try:
            loss = self._pass_once(batch, counted)
            with dequantised():
                if self.fast.in_fp8:  # of equal products alone gradients can be told apart
                    self.model.zero_grad(set_to_none=True)
                    self._pass_once(batch, counted)
                wrong = self._miscompiled(batch, counted)
        except torch._dynamo.exc.TorchDynamoException as error:
            wrong = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        if not self._on_a_rank(wrong is not None):
            return loss
        log.warning("the decoder layers are not compiled: %s", wrong or "another process has found a reason")
        self.fast.compiled = False
        self.model.zero_grad(set_to_none=True)
        return self._pass_once(batch, counted)

    def _on_a_rank(self, found: bool) -> bool:
        """Whether a rank has found it; each decides for itself where it passes without the others."""
        return world().any(found) if self.shares_state else found

    def _pass_once(self, batch: dict[str, Any], counted: Any) -> Any:
        if self.fast is None or not self.shares_state:
            return super().try_pass(batch, counted)
        total = torch.zeros((), device=self.args.device)
        self.accelerator.gradient_state._set_sync_gradients(False)
        try:
            with self.fast.running():
                for one in batch["micro_batches"]:  # zeros do not change the engine's sums of gradients
                    total += self._pass(self._wrapped, one.to(self.args.device), counted, factor=0.0)
        finally:
            self.accelerator.gradient_state._set_sync_gradients(True)
        return total

    def _miscompiled(self, batch: dict[str, Any], counted: Any) -> str | None:
        """Return how the gradients of the pass before differ from those without a compiler; None if they do not."""
        from finetune_trainer.fast.check import GRADIENT

        assert self.fast is not None  # noqa: S101
        found = self._gradients(batch)
        self.model.zero_grad(set_to_none=True)
        with self.fast.plainly():
            if not self.shares_state:
                super().try_pass(batch, counted)
            expected = self._gradients(batch)
        apart = float((found - expected).norm() / expected.norm().clamp(min=1e-12))
        log.info("compiled gradients differ by %.1f%%", 100 * apart)
        return None if apart <= GRADIENT else f"compiled gradients differ by {apart:.0%}"

    def _gradients(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the gradients that a pass has left; of what the engine has taken away some, by a pass around it."""
        from finetune_trainer.fast.check import gradients, in_a_row
        from finetune_trainer.fast.path import flat

        if not self.shares_state:
            return gradients(self.model)
        assert self.fast is not None  # noqa: S101
        found: list[torch.Tensor] = []
        with self.fast.running():
            for one in batch["micro_batches"]:
                micro_batch = one.to(self.args.device)
                with self.compute_loss_context_manager(), flat(micro_batch):
                    found += torch.autograd.grad(self.model(micro_batch=micro_batch), self.fast.sample)
        return in_a_row(found)

    def forget_steps(self) -> None:
        """Drop what was counted of passes that were no steps, too."""
        self._passed = 0

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the tokens of a step."""
        if self.fast is not None and "loss" in logs:
            self._total_train_tokens += int(world().total(self._passed)[0])
            self._passed = 0
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        super().log(logs, *args, **kwargs)
