"""What the trainer posts while it works: Kubeflow Trainer's status protocol, with the names of our metrics.

The body is `{"trainerStatus": {"progressPercentage", "estimatedRemainingSeconds", "metrics": [{"name", "value"}],
"lastUpdatedTime"}}` (kubeflow/trainer, pkg/statusserver). Each post replaces the one before. Values are strings
there; a value that is not a finite number is dropped, since NaN is not JSON and would block later status writes.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_contract.model import Model

MAX_BODY_BYTES = 64 * 1024

# transformers' own callback sends its log keys: theirs on the left, ours on the right.
_SYNONYMS = {
    "total_steps": "totalSteps",
    "current_step": "step",
    "eval_loss": "evalLoss",
    "learning_rate": "learningRate",
    "current_epoch": "epoch",
    "train_tokens_per_second": "tokensPerSecond",
}


class Metric(Model):
    """One named value of a post."""

    name: Annotated[str, Field(max_length=256)]
    value: Annotated[str, Field(max_length=256)]


class TrainerStatus(Model):
    """The body's one field."""

    model_config = ConfigDict(extra="ignore")

    progress_percentage: Annotated[int, Field(ge=0, le=100)] | None = None
    estimated_remaining_seconds: Annotated[int, Field(ge=0)] | None = None
    metrics: Annotated[tuple[Metric, ...], Field(max_length=256)] = ()
    last_updated_time: datetime | None = None


class ProgressPost(Model):
    """The whole body of a post."""

    model_config = ConfigDict(extra="ignore")

    trainer_status: TrainerStatus


def finite_metrics(status: TrainerStatus) -> dict[str, float]:
    """Return the metrics that are finite numbers, under our names."""
    found: dict[str, float] = {}
    for metric in status.metrics:
        try:
            value = float(metric.value)
        except ValueError:
            continue
        if math.isfinite(value):
            found[_SYNONYMS.get(metric.name, metric.name)] = value
    return found
