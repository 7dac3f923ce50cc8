"""What a training was, in numbers: read from the loop's log, kept in evaluation.json, drawn in the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_contract.model import Model

MAX_POINTS = 1000
"""Points of a curve that are kept: as many as a screen shows."""


class Point(Model):
    """One value of a curve."""

    step: int
    value: float


class Training(Model):
    """One run's training, over all its attempts."""

    steps: int
    loss: float | None = None
    """Of the last step."""
    best_step: int | None = None
    """Step whose weights are exported: the one with the lowest held-out loss."""
    best_loss: float | None = None
    resumed_from_step: int | None = None
    checkpoint_step: int | None = None
    micro_batch_size: int | None = None
    gradient_checkpointing: bool | None = None
    computed_by: str | None = None
    """What the steps were computed by, beside transformers and PEFT."""
    frozen_base: str | None = None
    """How the frozen base model was held, where that is not the number format of the computation, and what it cost."""
    trained_tokens: int | None = None
    """Over all attempts, prompts included."""
    tokens_per_second: float | None = None
    """Mean of the last attempt, pauses for measurements included."""
    mfu: float | None = None
    """Share of the GPU's peak, the same way."""
    gpu_seconds: float | None = None
    """Over all attempts, up to the end of training."""
    stopped_early: str | None = None
    """Why the run ended before its last step, if it did."""
    warnings: tuple[str, ...] = ()
    """What an expert would change next time."""
    losses: tuple[Point, ...] = ()
    held_out_losses: tuple[Point, ...] = ()
    held_out_accuracies: tuple[Point, ...] = ()
    """Of preferences: share of held-out pairs of which the better answer has the higher reward."""
    held_out_margins: tuple[Point, ...] = ()
    """Of preferences: mean difference of both answers' rewards."""


def curve(history: Sequence[dict[str, Any]], name: str) -> tuple[Point, ...]:
    """Return one value of the log over the steps, thinned to MAX_POINTS; the last point always stays."""
    points = [Point(step=entry["step"], value=entry[name]) for entry in history if name in entry]
    stride = -(-len(points) // MAX_POINTS) or 1
    return tuple(points[::-1][::stride][::-1])


def trained_tokens(history: Sequence[dict[str, Any]]) -> int | None:
    """Return how many tokens the steps of a log were trained on; None before the first."""
    return next((int(entry["num_tokens"]) for entry in reversed(history) if "num_tokens" in entry), None)
