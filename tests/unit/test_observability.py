"""What is counted and logged of a job's life: each change of status once."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_contract.exit_codes import ExitCode
from finetune_operator.api.conditions import Phase
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.observability.logs import JsonFormatter
from finetune_operator.observability.metrics import Metrics
from finetune_trainer.reporting.prometheus import _METRICS, exposition
from tests.support.builders import Story, ended_pod, failed_child, make_child, make_pod, make_spec, trained_message


class Counted:
    """A story whose statuses are counted as they are written."""

    def __init__(self, **lifecycle: object) -> None:
        self.story = Story(make_spec(lifecycle=lifecycle))
        self.metrics = Metrics(jobs=lambda: [self.story.job.status], depth=lambda: 3)
        self._before = self.story.job

    def count(self) -> None:
        """Count what has been written since the last time."""
        self.metrics.wrote(self._before, self.story.job.status)
        self._before = self.story.job

    def value(self, name: str) -> float:
        """Return a metric by name and labels."""
        lines = self.metrics.text().decode().splitlines()
        return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} "))


def test_a_replica_that_does_not_lead_tells_of_no_jobs_so_that_each_is_counted_once() -> None:
    leads = [True, False]
    jobs = [FineTuneJobStatus(phase=Phase.RUNNING)]
    replicas = [Metrics(jobs=lambda: jobs, depth=lambda: 3, leads=lambda one=one: one) for one in leads]
    leader, follower = (metrics.text().decode() for metrics in replicas)
    assert 'finetune_jobs{phase="Running"} 1.0' in leader
    assert "finetune_jobs{" not in follower
    assert ("finetune_leader 1.0" in leader, "finetune_leader 0.0" in follower) == (True, True)
    assert "finetune_queue_depth 0.0" in follower


def test_a_run_that_succeeds() -> None:
    counted = Counted()
    story = counted.story
    train = story.is_prepared()
    counted.count()
    story.passes(90)
    story.sees(train, pods=(make_pod(train),))
    counted.count()
    assert counted.value('finetune_gpus{phase="Running"}') == 1
    story.passes(210)
    done = make_child("train", "complete")
    story.sees(done, pods=(ended_pod(done, exit_code=0, message=trained_message().encode()),))
    counted.count()
    counted.count()

    assert counted.value("finetune_attempts_total") == 1
    assert counted.value("finetune_job_start_seconds_sum") == 90
    assert counted.value('finetune_job_duration_seconds_sum{phase="Succeeded"}') == 300
    assert counted.value('finetune_jobs{phase="Succeeded"}') == 1
    assert counted.value('finetune_jobs{phase="Running"}') == counted.value('finetune_gpus{phase="Running"}') == 0
    assert counted.value("finetune_queue_depth") == 3


def test_failures_are_counted_by_class_reason_and_stage() -> None:
    counted = Counted()
    counted.story.is_prepared()
    counted.count()
    for attempt in (1, 2):
        counted.story.sees(failed_child("train", ExitCode.STORAGE_UNAVAILABLE, attempt=attempt))
        counted.count()
    failed = 'finetune_attempt_failures_total{class="Storage",reason="StorageUnavailable",stage="train"}'
    assert counted.value(failed) == 2
    assert counted.value("finetune_attempts_total") == 3


@pytest.mark.parametrize("error", [ValueError("a bug"), TimeoutError()], ids=lambda error: type(error).__name__)
def test_reconciles_are_timed_and_their_errors_counted(error: Exception) -> None:
    counted = Counted()
    counted.metrics.reconciled(0.02)
    counted.metrics.failed(error)
    assert counted.value("finetune_reconcile_duration_seconds_count") == 1
    assert counted.value(f'finetune_reconcile_errors_total{{error="{type(error).__name__}"}}') == 1


def test_requests_are_counted_by_method_and_answer() -> None:
    counted = Counted()
    for code in ("200", "409", "409"):
        counted.metrics.answered("PATCH", "/apis", code, 0)
    assert counted.value('rest_client_requests_total{code="409",method="PATCH"}') == 2


def test_a_log_line_says_in_fields_of_its_own_which_job_it_is_about() -> None:
    record = logging.makeLogRecord({"msg": "team/bot: Running", "name": "x", "job": "team/bot", "run": 2, "attempt": 1})
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["job"], line["run"], line["attempt"]) == ("team/bot: Running", "team/bot", 2, 1)


ROOT = Path(__file__).parents[2]
ALERTS = [
    rule
    for group in yaml.safe_load((ROOT / "charts" / "finetune-operator" / "files" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_asks_for_metrics_that_there_are_and_has_its_runbook(alert: dict[str, Any]) -> None:
    served = set(re.findall(r"# TYPE (\S+)", Counted().metrics.text().decode()))
    asked = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"finetune_\w+", alert["expr"])}
    assert asked <= served
    page, _, heading = alert["annotations"]["runbook"].partition("#")
    headings = [line[3:].lower() for line in (ROOT / page).read_text().splitlines() if line.startswith("## ")]
    assert heading in headings


def test_the_dashboard_asks_for_metrics_that_are_served() -> None:
    dashboard = json.loads((ROOT / "charts" / "finetune-operator" / "files" / "dashboard.json").read_text())
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()))
    names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"(?:finetune|rest|process)_\w+", asked)}
    served = set(re.findall(r"# TYPE (\S+)", Counted().metrics.text().decode()))
    trained = set(re.findall(r"# TYPE (\S+)", exposition({name: 1.0 for name, *_ in _METRICS}, job="bot")))
    assert names <= served | trained
    # A sum over both would count a run twice.
    assert not {name for name in served & trained if name.startswith("finetune_")}


@pytest.mark.parametrize("title", ["Jobs under way", "GPUs by phase"])
def test_the_dashboard_has_a_colour_for_every_phase(title: str) -> None:
    dashboard = json.loads((ROOT / "charts" / "finetune-operator" / "files" / "dashboard.json").read_text())
    (panel,) = [panel for panel in dashboard["panels"] if panel["title"] == title]
    assert {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]} == set(Phase)
