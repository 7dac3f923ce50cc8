"""Training steps on flat micro-batches by the fast path; where there is none, TRL's.

Trainer sees a step of one batch, a rank's share of the examples, and this cuts it: the number of passes follows from
the tokens. Nothing in a step waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.fast.micro_batches import MicroBatch
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


class FlatTrainer(ZeroTrainer):
    """ZeroTrainer that passes micro-batches of a number of tokens, where there is a fast path."""

    fast: FastPath | None = None
    tokens_a_pass: int | None = None
    """Tokens of a micro-batch; None where it is a number of examples."""
    _passed = 0
    """Tokens of this rank since the last log."""

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
        total = torch.zeros((), device=self.args.device)
        last = len(inputs["micro_batches"]) - 1
        with self.fast.running():
            for number, one in enumerate(inputs["micro_batches"]):
                with self._synchronised(model, number == last):
                    total += self._pass(model, one.to(self.args.device), num_items_in_batch)
                self._fetcher.start()  # while the GPU is busy with what was just launched
        return total

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return a step's batch, which was made during the step before, and the number of its counted tokens."""
        if self.fast is None:
            found: tuple[list[Any], Any] = super().get_batch_samples(epoch_iterator, num_batches, device)
            return found
        batches = self._fetcher.take(epoch_iterator, num_batches)
        return batches, self._get_num_items_in_batch(batches, device)

    def _pass(self, model: Any, micro_batch: MicroBatch, counted: Any) -> torch.Tensor:
        from finetune_trainer.fast.path import flat

        self._passed += micro_batch.tokens
        with self.compute_loss_context_manager(), flat(micro_batch):
            # The ranks' gradients are averaged.
            loss = model(micro_batch=micro_batch) * world().size / torch.as_tensor(counted).clamp(min=1)
            self.accelerator.backward(loss)
        found: torch.Tensor = loss.detach()
        return found

    def _synchronised(self, model: Any, last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients with the last pass alone."""
        return nullcontext() if last else self.accelerator.no_sync(model)

    def try_pass(self, batch: dict[str, Any], counted: Any) -> Any:
        """Pass a batch forward and backward, for its memory; what a compiler cannot make right is not compiled.

        The same batch passes without a compiler, too, which recomputes then, so that it needs no more memory.
        """
        if self.fast is None or not self.fast.compiled:
            return super().try_pass(batch, counted)
        try:
            loss = super().try_pass(batch, counted)
            if (wrong := self._miscompiled(batch, counted)) is None:
                return loss
        except torch._dynamo.exc.TorchDynamoException as error:
            wrong = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        log.warning("the decoder layers are not compiled: %s", wrong)
        self.fast.compiled = False
        self.model.zero_grad(set_to_none=True)
        return super().try_pass(batch, counted)

    def _miscompiled(self, batch: dict[str, Any], counted: Any) -> str | None:
        """Return how the gradients that are there differ from those without a compiler; None if they do not."""
        from finetune_trainer.fast.check import GRADIENT, gradients

        assert self.fast is not None  # noqa: S101
        found = gradients(self.model)
        self.model.zero_grad(set_to_none=True)
        with self.fast.plainly():
            super().try_pass(batch, counted)
        expected = gradients(self.model)
        apart = float((found - expected).norm() / expected.norm().clamp(min=1e-12))
        log.info("compiled gradients differ by %.1f%%", 100 * apart)
        return None if apart <= GRADIENT else f"compiled gradients differ by {apart:.0%}"

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
