"""One forward and backward pass of the longest micro-batch before the first real step.

Memory that runs out, or a loss that is not a number, shows here within seconds instead of whenever the longest
examples come up. Nothing remains of it: weights, optimizer and random numbers are as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from finetune_trainer.dataset import IGNORED
from finetune_trainer.failures import is_accelerator_out_of_memory
from finetune_trainer.logs import log
from finetune_trainer.loop import Loop, require_finite
from finetune_trainer.model import computing


def fit_micro_batch(make: Callable[[int], Loop], *, wanted: int, batch_size: int) -> Loop:
    """Return a loop whose micro-batch fits: the wanted one, or the largest smaller divisor of the batch that does."""
    micro_batch = wanted
    while True:
        loop = make(micro_batch)
        try:
            dry_run(loop, micro_batch=micro_batch)
            return loop
        except torch.OutOfMemoryError as error:
            smaller = largest_divisor(batch_size, at_most=micro_batch // 2)
            if not is_accelerator_out_of_memory(error) or smaller is None:
                raise
            log.warning("micro-batch %d does not fit the GPU's memory, trying %d", micro_batch, smaller)
        micro_batch = smaller
        del loop
        torch.cuda.empty_cache()


def dry_run(loop: Loop, *, micro_batch: int) -> None:
    """Pass the longest micro-batch forward and backward. Raises LOSS_NOT_FINITE, or what memory says."""
    on_gpu = loop.args.device.type == "cuda"
    state = torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_gpu else None
    moments = _like_optimizer_state(loop.model) if on_gpu else []
    try:
        batch = longest_batch(loop, micro_batch)
        with computing(loop.precision):
            loss = loop.training_step(loop.model, batch, batch["labels"][:, 1:].ne(IGNORED).sum())
        require_finite(loss.item(), "loss of the dry run")
        require_finite(_gradient_norm(loop.model), "gradients' norm of the dry run")
    finally:
        moments.clear()
        loop.forget_steps()
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state_all(state[1])


def longest_batch(loop: Loop, micro_batch: int) -> dict[str, Any]:
    """Return the batch of the longest examples."""
    rows = loop.train_dataset
    lengths = [len(ids) for ids in rows["input_ids"]]
    longest = sorted(range(len(lengths)), key=lambda index: -lengths[index])[:micro_batch]
    batch: dict[str, Any] = loop.data_collator([rows[index] for index in longest])
    return batch


def largest_divisor(number: int, *, at_most: int) -> int | None:
    """Return the largest divisor of a number up to a limit; None below 1."""
    return next((divisor for divisor in range(at_most, 0, -1) if number % divisor == 0), None)


def _gradient_norm(model: Any) -> float:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def _like_optimizer_state(model: Any) -> list[torch.Tensor]:
    # AdamW allocates its two moments at the first real step; held here, they count towards the peak.
    return [
        torch.empty_like(parameter) for parameter in model.parameters() if parameter.requires_grad for _ in range(2)
    ]
