"""The dashboard's queries, by a real Prometheus that scrapes the operator: each panel has something to show."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from dev.cluster.prometheus import Prometheus
from finetune_trainer.reporting.prometheus import MetricsServer
from tests.support.jobs import RunningJob, make_manifest
from tests.support.manifests import CHART

DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"] if "targets" in panel}
# What Grafana puts in place of its variables.
VARIABLES = {"$__rate_interval": "10s", "$__range": "1m", "$window": "1m", "$namespace": ".*", "$job": ".*"}
QUIET = {"Failed reconciles"}
"""Panels that are empty where all goes well: their queries are asked all the same."""
JOBS = {"": "Succeeded", "prepare=exit-12": "Failed", "train=run": "Running"}
"""What the fake trainer is told, and what becomes of the job."""
TRAINING = {"step": 3.0, "totalSteps": 20.0, "loss": 1.2, "evalLoss": 1.3, "tokensPerSecond": 900.0, "mfu": 0.4}


@pytest.fixture
def prometheus(cluster, operator, namespace, tmp_path: Path):
    training = MetricsServer(0, lambda: TRAINING, job="bot")  # the fake trainer serves none
    targets = {"operator": f"127.0.0.1:{operator.metrics_port}", "training": f"127.0.0.1:{training.port}"}
    try:
        with Prometheus(tmp_path, targets=targets, labels={"namespace": "team", "pod": "operator-0"}) as running:
            until(lambda: len(running.query("up == 1")) == len(targets), what="first scrapes")
            for script, phase in JOBS.items():
                manifest = make_manifest(phase.lower(), script, resources={"gpusPerNode": 1})
                RunningJob(cluster, namespace, manifest).reaches(phase)
            yield running
    finally:
        training.close()


def test_every_panel_shows_something(prometheus: Prometheus) -> None:
    assert PANELS.keys() >= QUIET
    until(lambda: set(empty(prometheus)) <= QUIET, what=lambda: f"data in {empty(prometheus)}")


def empty(prometheus: Prometheus) -> list[str]:
    """Return the titles of panels with a query that finds nothing."""
    return [
        title
        for title, panel in PANELS.items()
        if not all(has_values(prometheus.query(filled(target["expr"]))) for target in panel["targets"])
    ]


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def has_values(found: list[dict[str, Any]]) -> bool:
    return any(not math.isnan(float(series["value"][1])) for series in found)


def until(holds, *, what, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.3)
