"""One forward and backward pass of the longest micro-batch before the first real step.

Memory that runs out, or a loss that is not a number, shows here within seconds instead of whenever the longest
examples come up. Micro-batch and recomputation follow what is measured here, at the same global batch. Nothing remains
of it: weights, optimizer and random numbers are as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch

from finetune_contract.estimate import STATE_BYTES
from finetune_trainer.data.dataset import IGNORED, row_lengths
from finetune_trainer.failures import is_accelerator_out_of_memory
from finetune_trainer.logs import log
from finetune_trainer.model.build import computing
from finetune_trainer.parallel.distributed import world
from finetune_trainer.training.loop import Loop, require_finite
from finetune_trainer.training.optimizers import optimizer_called

ROOM = 0.95
"""Share of the GPU's memory that a plan may reserve: other lengths fragment it, and the context needs some."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the passes of a step are cut: neither part changes what a step computes."""

    micro_batch: int
    recompute: bool
    """Whether the backward pass computes the activations again instead of keeping them."""

    def __str__(self) -> str:
        """Say it for the log."""
        return f"micro-batch {self.micro_batch}" + (" with recomputation" if self.recompute else "")


def plans(wanted: Plan, *, batch_size: int, free: bool) -> Iterator[Plan]:
    """Yield the wanted plan and what to try where it does not fit: smaller micro-batches, then recomputation.

    `free` says that recomputation is ours to choose. Where the estimate chose it, the smallest micro-batch is tried
    without it first: the estimate may be wrong, and recomputation costs a third of a step.
    """
    sizes = [wanted.micro_batch]
    while smaller := largest_divisor(batch_size, at_most=sizes[-1] // 2):
        sizes.append(smaller)
    if free and wanted.recompute:
        yield Plan(sizes[-1], recompute=False)
    yield from (Plan(size, wanted.recompute) for size in sizes)
    if free and not wanted.recompute:
        yield from (Plan(size, recompute=True) for size in sizes)


def fit(make: Callable[[Plan], Loop], candidates: Iterable[Plan]) -> Loop:
    """Return a loop whose longest micro-batch fits the GPU with room to spare: the first plan for which it does."""
    tried = list(candidates)
    for plan in tried:
        last = plan == tried[-1]
        loop = make(plan)
        found = _try(loop, plan, last=last)
        # The GPU with the least room decides for all.
        if world().worst(found) == _Found.FITS:
            log.info("%s fits%s", plan, _used(loop))
            return loop
        log.warning(_WHY_NOT[found], plan, _used(loop))
        del loop
        torch.cuda.empty_cache()
    raise ValueError("no plan to try")


class _Found(IntEnum):
    """What a dry run has shown, the worst last."""

    FITS = 0
    TOO_CLOSE = 1
    DOES_NOT_FIT = 2


_WHY_NOT = {
    _Found.FITS: "%s does not fit another process's GPU%s",
    _Found.TOO_CLOSE: "%s leaves too little of the GPU's memory%s",
    _Found.DOES_NOT_FIT: "%s does not fit the GPU's memory%s",
}


def _try(loop: Loop, plan: Plan, *, last: bool) -> _Found:
    try:
        dry_run(loop, micro_batch=plan.micro_batch)
    except torch.OutOfMemoryError as error:
        if not is_accelerator_out_of_memory(error) or last:
            raise
        return _Found.DOES_NOT_FIT
    return _Found.TOO_CLOSE if not last and _too_close(loop) else _Found.FITS


@contextmanager
def _alone(loop: Loop) -> Iterator[None]:
    """Compute passes inside without the other ranks: whether one fits is for each to find out."""
    together = loop.accelerator.gather_for_metrics
    loop.accelerator.gather_for_metrics = lambda value, *_, **__: value
    try:
        yield
    finally:
        loop.accelerator.gather_for_metrics = together


def dry_run(loop: Loop, *, micro_batch: int) -> None:
    """Pass the longest micro-batch forward and backward. Raises LOSS_NOT_FINITE, or what memory says."""
    on_gpu = loop.args.device.type == "cuda"
    state = torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_gpu else None
    moments = _like_optimizer_state(loop) if on_gpu else []
    try:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        batch = longest_batch(loop, micro_batch)
        with computing(loop.precision), _alone(loop):
            loss = loop.try_pass(batch, batch["labels"][:, 1:].ne(IGNORED).sum())
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
    lengths = row_lengths(rows)
    longest = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    if loop.tokens_a_pass is not None:
        return _flat_batch(loop, longest, same=lengths[longest[0]] == lengths[longest[-1]])
    batch: dict[str, Any] = loop.data_collator([rows[index] for index in longest[:micro_batch]])
    return batch


def _flat_batch(loop: Loop, longest: list[int], *, same: bool) -> dict[str, Any]:
    """Return the fullest micro-batch of a step of the longest examples and, if lengths differ, a usual one after it.

    The compiler has then seen what steps will ask of it, and suits to the usual size what it makes for any.
    """
    count = loop.args.per_device_train_batch_size
    first, usual = longest[:count], longest[max(len(longest) - count, 0) // 2 :][:count]
    batches = [loop.data_collator([loop.train_dataset[index] for index in one]) for one in (first, usual)]
    fullest = [max(one["micro_batches"], key=lambda each: each.input_ids.shape[1]) for one in batches]
    return {**batches[0], "micro_batches": fullest[:1] if same else fullest}


def largest_divisor(number: int, *, at_most: int) -> int | None:
    """Return the largest divisor of a number up to a limit; None below 1."""
    return next((divisor for divisor in range(at_most, 0, -1) if number % divisor == 0), None)


def _gradient_norm(model: Any) -> float:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def _too_close(loop: Loop) -> bool:
    memory = _memory(loop)
    return memory is not None and memory[0] > ROOM * memory[1]


def _used(loop: Loop) -> str:
    memory = _memory(loop)
    return f" ({memory[0] / 2**30:.1f} of {memory[1] / 2**30:.1f} GiB)" if memory else ""


def _memory(loop: Loop) -> tuple[int, int] | None:
    """Return the peak of what the dry run has reserved, and what the GPU has; None on a CPU."""
    if loop.args.device.type != "cuda":
        return None
    return torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(loop.args.device).total_memory


def _like_optimizer_state(loop: Loop) -> list[torch.Tensor]:
    # The optimizer allocates its state at the first real step; held here, it counts towards the peak.
    size = STATE_BYTES[optimizer_called(loop.args.optim)]
    return [torch.empty(int(size * one.numel()), dtype=torch.uint8, device=one.device) for one in loop.optimized]
