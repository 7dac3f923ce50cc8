"""The training loop where examples are pairs: another batch, another loss, and more that is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune_trainer.dataset import PAIR, Data
from finetune_trainer.loop import Loop
from finetune_trainer.preference import (
    REFERENCE,
    Compared,
    Preference,
    answers_of,
    held_out_preference,
    pair_collator,
)

ACCURACY, MARGIN = "rewards/accuracies", "rewards/margins"
"""As TRL logs them."""


class PreferenceLoop(Loop):
    """One run's training loop on preferences."""

    def __init__(self, *, preference: Preference, **settings: Any) -> None:
        self._preference = preference
        super().__init__(**settings)

    def compare_with(self, data: Data) -> None:
        """Take the same data, with what the base model makes of it."""
        self._data, self.train_dataset = data, data.train

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return a micro-batch's part of the step's loss, which is the mean over all its pairs."""
        del return_outputs  # nobody asks: the held-out part is measured by `measure`
        reference = inputs.pop(REFERENCE, None)
        found = self._preference.compare(answers_of(model, inputs), reference)
        self._note(inputs, found)
        return found.losses.sum() / num_items_in_batch

    def _collator(self, *, flatten: bool) -> Any:
        del flatten
        return pair_collator(self._prepared)

    def measure(self, *, safe_point: Callable[[], None]) -> dict[str, float]:
        """Return the objective on the held-out pairs."""
        found = held_out_preference(
            self.model,
            self._data.validation,
            preference=self._preference,
            prepared=self._prepared,
            safe_point=safe_point,
        )
        return {"eval_loss": found.loss, f"eval_{ACCURACY}": found.accuracy, f"eval_{MARGIN}": found.margin}

    def _note(self, inputs: dict[str, Any], found: Compared) -> None:
        metrics = self._metrics["train"]
        metrics[ACCURACY].append((found.margins > 0).float().mean().item())
        metrics[MARGIN].append(found.margins.mean().item())
        self._total_train_tokens += int(inputs["attention_mask"].sum())
        metrics["num_tokens"] = [self._total_train_tokens]

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> int:
        """Return what a step's loss is divided by: its pairs."""
        del device
        return sum(len(batch["input_ids"]) // 2 for batch in batch_samples)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [*PAIR, REFERENCE]
