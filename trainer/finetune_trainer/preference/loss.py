"""Losses from preferences: how much likelier the better answer is than the worse.

DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7) and KTO (Ethayarajh et al. 2024, arXiv:2402.01306, equations 7
and 8) compare with the base model, whose log-probabilities are taken once, before the first step. ORPO (Hong et al.
2024, arXiv:2403.07691, equations 4 to 7) adds the answer's own loss to the odds of both and needs no base. All are
means over a step's pairs, so that neither the micro-batch nor the number of ranks changes a step.

Written out here instead of TRL's trainers: those tokenise and cut on their own, and know nothing of the prepared masks
(docs/adr/0011-preference-losses.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from finetune_contract.spec import Objective

BETTER, WORSE, MISMATCHED = range(3)
"""Columns of answers: both of a pair, and with KTO another pair's better answer after this one's prompt."""


@dataclass(frozen=True, slots=True)
class Answers:
    """A row a pair, a column an answer: log-probabilities, summed over the answer's tokens, and how many those are."""

    sums: torch.Tensor
    counts: torch.Tensor

    @property
    def real(self) -> torch.Tensor:
        """Which rows are pairs: those that only fill a batch have no answers."""
        return self.counts[:, BETTER] > 0

    def means(self, answer: int) -> torch.Tensor:
        """Return the means a token of one column."""
        return self.sums[:, answer] / self.counts[:, answer].clamp(1)


@dataclass(frozen=True, slots=True)
class Compared:
    """Pair by pair: the loss, and the margin between both answers' rewards."""

    losses: torch.Tensor
    margins: torch.Tensor


@dataclass(frozen=True, slots=True)
class Preference:
    """An objective and its strength."""

    objective: Objective
    beta: float

    @property
    def needs_reference(self) -> bool:
        """Whether answers are compared with the base model's."""
        return self.objective is not Objective.ORPO

    def compare(self, answers: Answers, reference: torch.Tensor | None, *, z0: float = 0.0) -> Compared:
        """Return each pair's loss and margin.

        `reference` has the base model's sums, in the columns of `answers`; `z0` is KTO's (`reference_point`).
        """
        # The dry run comes before the reference: then the model is its own.
        base = answers.sums.detach() if reference is None else reference
        match self.objective:
            case Objective.DPO:
                losses, margins = _dpo(answers, base, beta=self.beta)
            case Objective.KTO:
                losses, margins = _kto(answers, base, beta=self.beta, z0=z0)
            case _:
                losses, margins = _orpo(answers, beta=self.beta)
        return Compared(losses[answers.real], margins[answers.real].detach())


def reference_point(drifts: float, rows: float) -> float:
    """Return KTO's z0: the mean of log(model / base) over rows of prompts with others' answers, no less than 0."""
    return max(0.0, drifts / rows) if rows else 0.0


def _dpo(answers: Answers, base: torch.Tensor, *, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    rewards = beta * (answers.sums[:, :MISMATCHED] - base[:, :MISMATCHED])
    margins = rewards[:, BETTER] - rewards[:, WORSE]
    return -logsigmoid(margins), margins


def _kto(answers: Answers, base: torch.Tensor, *, beta: float, z0: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A pair is a desirable and an undesirable example, of equal weight: there are as many of both."""
    rewards = beta * (answers.sums[:, :MISMATCHED] - base[:, :MISMATCHED])
    desirable = 1 - torch.sigmoid(rewards[:, BETTER] - beta * z0)
    undesirable = 1 - torch.sigmoid(beta * z0 - rewards[:, WORSE])
    return (desirable + undesirable) / 2, rewards[:, BETTER] - rewards[:, WORSE]


def _orpo(answers: Answers, *, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    better, worse = answers.means(BETTER), answers.means(WORSE)
    odds = (better - worse) - (_log_of_rest(better) - _log_of_rest(worse))
    return -better - beta * logsigmoid(odds), beta * (better - worse)


def _log_of_rest(log_probability: torch.Tensor) -> torch.Tensor:
    """Return log(1 - p); p of exactly 1 has none."""
    return torch.log1p(-torch.exp(log_probability.clamp(max=-1e-6)))
