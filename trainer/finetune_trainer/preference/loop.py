"""The training loop where examples are pairs: another batch, another loss, and more that is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from finetune_contract.spec import Objective
from finetune_trainer.data.dataset import IGNORED, PAIR, Data
from finetune_trainer.model.build import measuring
from finetune_trainer.parallel.distributed import world
from finetune_trainer.parallel.ranked import shareable
from finetune_trainer.preference.loss import Compared, Preference, reference_point
from finetune_trainer.preference.mismatch import OTHER
from finetune_trainer.preference.passes import (
    MISMATCH,
    REFERENCE,
    answers_of,
    drift_of,
    held_out_preference,
    pair_collator,
)
from finetune_trainer.training.loop import Loop

ACCURACY, MARGIN, Z0 = "rewards/accuracies", "rewards/margins", "kl"
"""As TRL logs them."""


class PreferenceLoop(Loop):
    """One run's training loop on preferences."""

    def __init__(self, *, preference: Preference, **settings: Any) -> None:
        self._preference = preference
        self._z0 = 0.0
        self._margins: list[float] = []
        self._tokens = 0
        super().__init__(**settings)

    def compare_with(self, data: Data) -> None:
        """Take the same data, with what the base model makes of it."""
        self._data = data
        self.train_dataset = shareable(data.train, pad_token_id=self._prepared.pad_token_id)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], int]:
        """Return a step's micro-batches of this rank, and all ranks' pairs; with KTO, settle what they are held to."""
        batches, pairs = super().get_batch_samples(*args, **kwargs)
        if self._preference.objective is Objective.KTO:
            self._z0 = self._reference_point(batches)
        return batches, pairs

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return a micro-batch's part of the step's loss, which is the mean over all its pairs."""
        del return_outputs  # nobody asks: the held-out part is measured by `measure`
        known = inputs.pop(REFERENCE, None)
        inputs.pop(MISMATCH, None)
        answers = answers_of(model, inputs)
        reference = torch.tensor(known).to(answers.sums) if known else None
        found = self._preference.compare(answers, reference, z0=self._z0)
        self._note(inputs, found)
        # The ranks' gradients are averaged.
        return found.losses.sum() * world().size / num_items_in_batch

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

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log what was measured, and of a step what all ranks have noted."""
        if "loss" in logs:
            self._publish()
        super().log(logs, *args, **kwargs)

    def forget_steps(self) -> None:
        """Drop what was noted of passes that were no steps, too."""
        super().forget_steps()
        self._margins, self._tokens = [], 0

    def _collator(self, *, flatten: bool) -> Any:
        del flatten
        return pair_collator(self._prepared, self._data.train)

    def _reference_point(self, batches: list[dict[str, Any]]) -> float:
        """Return z0 of a step, over all its micro-batches and ranks.

        No dropout, so that no random number is drawn: a step's own passes are as without it.
        """
        with measuring(self.model, self.precision):
            drifts = [drift_of(self.model, self._prepare_inputs(batch)) for batch in batches]
        return reference_point(*world().total(sum(drift for drift, _ in drifts), sum(rows for _, rows in drifts)))

    def _note(self, inputs: dict[str, Any], found: Compared) -> None:
        self._margins += found.margins.tolist()
        self._tokens += int(inputs["attention_mask"][_real(inputs["labels"])].sum())

    def _publish(self) -> None:
        noted = world().gather((self._margins, self._tokens))
        self._margins, self._tokens, metrics = [], 0, self._metrics["train"]
        metrics[MARGIN] = [margin for margins, _ in noted for margin in margins]
        metrics[ACCURACY] = [float(margin > 0) for margin in metrics[MARGIN]]
        self._total_train_tokens += sum(tokens for _, tokens in noted)
        metrics["num_tokens"] = [self._total_train_tokens]
        if self._preference.objective is Objective.KTO:
            metrics[Z0] = [self._z0]

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> int:
        """Return what a step's loss is divided by: its pairs, of all ranks."""
        del device
        (pairs,) = world().total(sum(int(_real(batch["labels"]).sum()) // 2 for batch in batch_samples))
        return int(pairs)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [*PAIR, OTHER, REFERENCE]


def _real(labels: torch.Tensor) -> torch.Tensor:
    """Return which sequences have an answer: those that only fill a batch have none."""
    return labels.ne(IGNORED).any(-1)
