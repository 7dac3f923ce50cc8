"""Losses from preferences: how much likelier the better answer is than the worse.

DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7) compares with the base model, whose log-probabilities are taken
once, before the first step. ORPO (Hong et al. 2024, arXiv:2403.07691, equations 4 to 7) adds the answer's own loss to
the odds of both and needs no base. Both are means over pairs, so that the micro-batch never changes a step.

Written out here instead of TRL's trainers: those tokenise and cut on their own, and know nothing of the prepared masks
(docs/adr/0011-preference-losses.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from finetune_contract.prepared import Prepared
from finetune_contract.spec import Objective
from finetune_trainer.dataset import IGNORED, Row, collator
from finetune_trainer.model import computing

REFERENCE = "reference"
"""Column of a pair's log-probabilities under the base model: better, worse."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Log-probabilities of answers, summed over their tokens, and how many those are: better ones first."""

    sums: torch.Tensor
    counts: torch.Tensor

    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sums of the better and of the worse answers."""
        better, worse = self.sums.chunk(2)
        return better, worse

    def mean_pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the means a token of the better and of the worse answers."""
        better, worse = (self.sums / self.counts).chunk(2)
        return better, worse


@dataclass(frozen=True, slots=True)
class Compared:
    """Pair by pair: the loss, and the margin between both answers' rewards."""

    losses: torch.Tensor
    margins: torch.Tensor


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Means over the held-out pairs."""

    loss: float
    accuracy: float
    """Share of pairs of which the better answer has the higher reward."""
    margin: float


@dataclass(frozen=True, slots=True)
class Preference:
    """An objective and its strength."""

    objective: Objective
    beta: float

    @property
    def needs_reference(self) -> bool:
        """Whether answers are compared with the base model's."""
        return self.objective is Objective.DPO

    def compare(self, answers: Answers, reference: torch.Tensor | None) -> Compared:
        """Return each pair's loss and margin; `reference` has a row a pair: better, worse."""
        if self.objective is Objective.DPO:
            # The dry run comes before the reference: then the model is its own.
            own = torch.stack(answers.pairs(), dim=1).detach()
            return _dpo(answers, own if reference is None else reference, beta=self.beta)
        return _orpo(answers, beta=self.beta)


def answers_of(model: Any, inputs: dict[str, Any]) -> Answers:
    """Return what a model makes of a batch of pairs."""
    output = model(**inputs, fused_lm_head=True, use_cache=False)
    return Answers(sums=output.log_probs.float().sum(-1), counts=inputs["labels"][:, 1:].ne(IGNORED).sum(-1).clamp(1))


def pair_collator(prepared: Prepared) -> Callable[[Sequence[Row]], dict[str, Any]]:
    """Return what makes a batch of pairs: all better answers, then all worse ones, each after its prompt."""
    padded = collator(prepared, flatten=False)

    def collate(rows: Sequence[Row]) -> dict[str, Any]:
        better = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
        worse = [{"input_ids": row["rejected_ids"], "labels": row["rejected_labels"]} for row in rows]
        batch: dict[str, Any] = padded(better + worse)
        if REFERENCE in rows[0]:
            batch[REFERENCE] = torch.tensor([row[REFERENCE] for row in rows])
        return batch

    return collate


def held_out_preference(
    model: Any, rows: Sequence[Row], *, preference: Preference, prepared: Prepared, safe_point: Callable[[], None]
) -> HeldOut:
    """Measure the objective on held-out pairs; `safe_point` is called between batches and may raise."""
    losses, margins = [], []
    for places, answers in _answers(model, rows, prepared=prepared, safe_point=safe_point):
        known = REFERENCE in rows[0]
        reference = torch.tensor([rows[place][REFERENCE] for place in places]) if known else None
        found = preference.compare(answers, reference.to(answers.sums.device) if reference is not None else None)
        losses.append(found.losses.double())
        margins.append(found.margins.double())
    loss, margin = torch.cat(losses), torch.cat(margins)
    return HeldOut(loss.mean().item(), (margin > 0).double().mean().item(), margin.mean().item())


def reference_of(
    model: Any, rows: Sequence[Row], *, prepared: Prepared, safe_point: Callable[[], None]
) -> list[tuple[float, float]]:
    """Return what the model, still the base, makes of each pair: better, worse."""
    found: list[tuple[float, float]] = [(0.0, 0.0)] * len(rows)
    for places, answers in _answers(model, rows, prepared=prepared, safe_point=safe_point):
        for place, better, worse in zip(places, *(side.tolist() for side in answers.pairs()), strict=True):
            found[place] = (better, worse)
    return found


def _answers(
    model: Any, rows: Sequence[Row], *, prepared: Prepared, safe_point: Callable[[], None]
) -> Iterator[tuple[list[int], Answers]]:
    """Yield places of rows, and their answers; longest pairs first, no gradients."""
    collate, was_training = pair_collator(prepared), model.training
    model.eval()
    try:
        with torch.no_grad(), computing(prepared.resolved.precision):
            for places in _batches(rows, prepared):
                safe_point()
                batch = collate([rows[place] for place in places])
                inputs = {name: batch[name].to(model.device) for name in ("input_ids", "labels", "attention_mask")}
                yield places, answers_of(model, inputs)
    finally:
        model.train(was_training)


def _batches(rows: Sequence[Row], prepared: Prepared) -> Iterator[list[int]]:
    size = max(1, prepared.resolved.micro_batch_size)
    by_length = sorted(range(len(rows)), key=lambda place: -pair_length(rows[place]))
    return (by_length[start : start + size] for start in range(0, len(rows), size))


def pair_length(row: Row) -> int:
    """Return the tokens of the longer side."""
    return max(len(row["input_ids"]), len(row["rejected_ids"]))


def _dpo(answers: Answers, reference: torch.Tensor, *, beta: float) -> Compared:
    (better, worse), (base_better, base_worse) = answers.pairs(), reference.unbind(1)
    margins = beta * ((better - base_better) - (worse - base_worse))
    return Compared(losses=-logsigmoid(margins), margins=margins.detach())


def _orpo(answers: Answers, *, beta: float) -> Compared:
    better, worse = answers.mean_pairs()
    odds = (better - worse) - (_log_of_rest(better) - _log_of_rest(worse))
    return Compared(losses=-better - beta * logsigmoid(odds), margins=beta * (better - worse).detach())


def _log_of_rest(log_probability: torch.Tensor) -> torch.Tensor:
    """Return log(1 - p); p of exactly 1 has none."""
    return torch.log1p(-torch.exp(log_probability.clamp(max=-1e-6)))
