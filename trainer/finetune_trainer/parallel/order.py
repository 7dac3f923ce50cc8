"""The order of the examples where several ranks share each batch: the order that one process would take.

accelerate deals micro-batches out to the ranks and fills an epoch's last ones with examples from its beginning; a step
would then count some examples twice. Here the epoch is filled with an example without trained tokens instead: it adds
nothing to loss and gradients, and every rank has as many micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState

from finetune_trainer.data.dataset import IGNORED


class EvenOrder(Sampler[int]):
    """Indices of an epoch: those of all examples in one process's order, then the filler's."""

    def __init__(self, examples: int, *, multiple: int, seed: int) -> None:
        import torch

        self._inner = SeedableRandomSampler(range(examples), generator=torch.Generator(), data_seed=seed)
        self._filler, self._missing = examples, -examples % multiple

    def __iter__(self) -> Iterator[int]:
        """Yield this epoch's indices."""
        yield from self._inner
        yield from [self._filler] * self._missing

    def __len__(self) -> int:
        """Return the number of indices, fillers included."""
        return self._filler + self._missing

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order."""
        self._inner.set_epoch(epoch)


class TellEpoch(TrainerCallback):  # type: ignore[misc]  # untyped
    """Sets the order's epoch from the step: accelerate loses it on the way where a resumed run skips batches."""

    def __init__(self, order: EvenOrder, *, steps_per_epoch: int) -> None:
        self._order, self._steps = order, steps_per_epoch

    def on_epoch_begin(self, _args: Any, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        """Look at the step that comes next."""
        self._order.set_epoch(state.global_step // self._steps)


def with_filler(rows: Any, *, pad_token_id: int) -> Any:
    """Return a dataset with one more row, on which no loss is taken."""
    from datasets import Dataset, concatenate_datasets

    filler = {name: [_blank(name, value, pad_token_id)] for name, value in rows[0].items()}
    return concatenate_datasets([rows, Dataset.from_dict(filler, features=rows.features)])


def _blank(name: str, value: Any, pad_token_id: int) -> Any:
    if name.endswith("labels"):
        return [IGNORED] * 2
    # What else a row has belongs to its answers, and there are none.
    return [pad_token_id] * 2 if name.endswith("_ids") else value
