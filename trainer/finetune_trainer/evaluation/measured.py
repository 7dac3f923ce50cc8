"""What was measured of one model, as it is kept in storage, so that a later attempt does not measure it again."""

from __future__ import annotations

from finetune_contract.evaluation import Scores
from finetune_contract.model import Model

ExampleLoss = tuple[float, int]
"""Summed loss of an example's counted tokens, and how many there are."""


class Measured(Model):
    """One model's results."""

    scores: Scores = Scores()
    losses: tuple[ExampleLoss, ...] = ()
    """Of the held-out examples."""
    general_losses: tuple[ExampleLoss, ...] = ()
    """Of the paragraphs of general text."""
    answer_scores: dict[str, tuple[float, ...]] = {}
    """By metric, one score an answer."""
    answers: tuple[str, ...] = ()
    """To the held-out questions."""
    samples: tuple[str, ...] = ()
    """To evaluation.samples.prompts."""
