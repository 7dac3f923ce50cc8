"""What a post becomes: our names, finite numbers, counts that a status can hold."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from finetune_contract.progress import Metric, TrainerStatus
from finetune_operator.api.report import ProgressReport, report_from, says_nothing

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def report(percent: int | None = None, eta: int | None = None, **metrics: str) -> ProgressReport:
    status = TrainerStatus(
        progress_percentage=percent,
        estimated_remaining_seconds=eta,
        metrics=tuple(Metric(name=name, value=value) for name, value in metrics.items()),
    )
    return report_from(status, received_at=NOW, pod_uid="pod-1", attempt=2)


def test_every_metric_of_the_trainer_has_its_field() -> None:
    assert report(
        37,
        900,
        step="37",
        totalSteps="100",
        epoch="1.5",
        loss="0.25",
        evalLoss="0.5",
        learningRate="2e-4",
        tokensPerSecond="1234.5",
        checkpointStep="30",
        resumedFromStep="20",
    ) == ProgressReport(
        received_at=NOW,
        pod_uid="pod-1",
        attempt=2,
        percent=37,
        eta_seconds=900,
        step=37,
        total_steps=100,
        epoch=1.5,
        loss=0.25,
        eval_loss=0.5,
        learning_rate=2e-4,
        tokens_per_second=1234.5,
        checkpoint_step=30,
        resumed_from_step=20,
    )


def test_metrics_of_transformers_callback_are_understood() -> None:
    found = report(5, current_step="5", total_steps="100", current_epoch="0.05", eval_loss="1.5", grad_norm="0.3")
    assert (found.step, found.total_steps, found.epoch, found.eval_loss) == (5, 100, 0.05, 1.5)


@pytest.mark.parametrize("value", ["nan", "NaN", "inf", "-Infinity", "1e999", "", "none", "0x10"])
def test_what_is_no_finite_number_is_dropped(value: str) -> None:
    assert report(1, loss=value, step=value) == report(1)


@pytest.mark.parametrize(
    ("value", "step"),
    [("0", 0), ("7.0", 7), ("2147483647", 2147483647), ("2147483648", None), ("1e300", None), ("-1", None)],
)
def test_counts_are_bounded_since_the_api_server_would_refuse_the_whole_status(value: str, step: int | None) -> None:
    assert report(step=value).step == step


def test_an_eta_that_cannot_be_is_dropped() -> None:
    assert report(eta=10**30).eta_seconds is None


@pytest.mark.parametrize(
    ("status", "nothing"),
    [
        pytest.param(TrainerStatus(), True, id="empty"),
        pytest.param(TrainerStatus(last_updated_time=NOW), True, id="only-a-time"),
        pytest.param(TrainerStatus(progress_percentage=0), False, id="zero-is-news"),
        pytest.param(TrainerStatus(estimated_remaining_seconds=0), False, id="eta"),
        pytest.param(TrainerStatus(metrics=(Metric(name="loss", value="1"),)), False, id="metric"),
    ],
)
def test_says_nothing(status: TrainerStatus, nothing: bool) -> None:
    assert says_nothing(status) is nothing
