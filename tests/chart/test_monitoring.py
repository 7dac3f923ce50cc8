"""Alerts, names of metrics and alerts on made-up series, by Prometheus' own tools."""

from __future__ import annotations

from pathlib import Path

from dev.cluster.prometheus import promtool
from finetune_operator.observability.metrics import Metrics
from tests.support.manifests import CHART

ALERTS = CHART / "files" / "alerts.yaml"


def test_the_rules_are_rules() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(ALERTS))
    assert done.returncode == 0, done.stderr


def test_each_alert_fires_when_it_must_and_not_before() -> None:
    done = promtool("test", "rules", str(Path(__file__).with_name("alerts.test.yaml")))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_operators_metrics_are_named_as_prometheus_has_it() -> None:
    text = Metrics(jobs=list, depth=int).text().decode()
    done = promtool("check", "metrics", text=text)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
