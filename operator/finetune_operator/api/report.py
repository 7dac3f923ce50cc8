"""What a trainer's post says, as the operator keeps it until its next status write.

The status server makes it, the reconciler's policy reads it. Everything here fits the status' schema: whatever a
pod sends, a later status write cannot be refused because of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from finetune_contract.progress import TrainerStatus, finite_metrics

_MAX_COUNT = 2**31 - 1
"""Largest count that is believed: more than int64 would have the API server refuse the whole status."""

_MAX_TOKENS = 2**53
"""Largest count that a float holds exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressReport:
    """The newest post of a job; each replaces the one before. What the post does not say is None."""

    received_at: datetime
    """When the operator got it, by the operator's clock."""
    pod_uid: str
    """The pod that posted, as TokenReview names it."""
    attempt: int | None = None
    """Attempt that the pod belongs to."""
    percent: int | None = None
    eta_seconds: int | None = None
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    trained_tokens: int | None = None
    gpu_seconds: float | None = None
    checkpoint_step: int | None = None
    resumed_from_step: int | None = None
    overfitting_since_step: int | None = None


def says_nothing(status: TrainerStatus) -> bool:
    """Tell whether a post carries no news: such a post keeps the one before (Kubeflow Trainer does so too)."""
    return status.progress_percentage is None and status.estimated_remaining_seconds is None and not status.metrics


def report_from(
    status: TrainerStatus, *, received_at: datetime, pod_uid: str, attempt: int | None = None
) -> ProgressReport:
    """Return the report of a post; numbers that are not finite and counts that cannot be are left out."""
    metrics = finite_metrics(status)
    return ProgressReport(
        received_at=received_at,
        pod_uid=pod_uid,
        attempt=attempt,
        percent=status.progress_percentage,
        eta_seconds=_bounded(status.estimated_remaining_seconds),
        step=_count(metrics, "step"),
        total_steps=_count(metrics, "totalSteps"),
        epoch=metrics.get("epoch"),
        loss=metrics.get("loss"),
        eval_loss=metrics.get("evalLoss"),
        learning_rate=metrics.get("learningRate"),
        tokens_per_second=metrics.get("tokensPerSecond"),
        mfu=metrics.get("mfu"),
        trained_tokens=_bounded(metrics.get("trainedTokens"), most=_MAX_TOKENS),
        gpu_seconds=metrics.get("gpuSeconds"),
        checkpoint_step=_count(metrics, "checkpointStep"),
        resumed_from_step=_count(metrics, "resumedFromStep"),
        overfitting_since_step=_count(metrics, "overfittingSinceStep"),
    )


def _count(metrics: Mapping[str, float], name: str) -> int | None:
    return _bounded(metrics.get(name))


def _bounded(value: float | None, *, most: int = _MAX_COUNT) -> int | None:
    return int(value) if value is not None and 0 <= value <= most else None
