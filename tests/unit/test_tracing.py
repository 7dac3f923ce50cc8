"""Traces: a job's life, reconciles with their requests, stages with their steps; and nothing at all when off."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from finetune_contract import tracing as contract
from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import JobIdentity, RunConfig
from finetune_contract.spec import TuningSpec
from finetune_contract.tracing import ENDPOINT, RunTrace, Sender, Span
from finetune_operator.api.views import JobView
from finetune_operator.observability.metrics import Metrics
from finetune_operator.observability.tracing import Tracing
from finetune_operator.observability.watching import Watching
from finetune_trainer.tracing import step, traced
from tests.support.builders import (
    NOW,
    UID,
    Story,
    ended_pod,
    failed_child,
    make_child,
    make_pod,
    make_spec,
    prepared_message,
    trained_message,
)
from tests.support.collector import Collector

RUN = RunTrace(UID, 1)


class Traced:
    """A story whose spans are kept as its statuses are written."""

    def __init__(self) -> None:
        self.story = Story()
        self.spans: list[Span] = []
        self._tracing = Tracing(self.spans.append)
        self._before: JobView = self.story.job

    def write(self) -> None:
        """Tell of what has been decided since the last time."""
        self._tracing.wrote(self._before, self.story.job.status)
        self._before = self.story.job

    def told(self) -> list[tuple[str, float, float, str]]:
        """Return name, begin and end in seconds since the story began, and error of each span."""
        began = int(NOW.timestamp()) * 10**9
        return [(span.name, (span.start - began) / 1e9, (span.end - began) / 1e9, span.error) for span in self.spans]

    def passes(self, seconds: float) -> None:
        """Write, and let time go by."""
        self.write()
        self.story.passes(seconds)


def test_a_life_is_the_run_and_what_it_was_made_of() -> None:
    traced = Traced()
    story = traced.story
    story.sees()
    traced.passes(20)
    done = make_child("prepare", "complete")
    story.sees(done, pods=(ended_pod(done, exit_code=0, message=prepared_message().encode()),))
    traced.passes(5)
    train = make_child("train")
    story.sees(train, pods=(make_pod(train, "Pending"),))
    traced.passes(60)
    story.sees(train, pods=(make_pod(train),))
    traced.passes(300)
    story.sees(failed_child("train", ExitCode.STORAGE_UNAVAILABLE))
    traced.passes(40)
    second = make_child("train", attempt=2)
    story.sees(second, pods=(make_pod(second),))
    traced.passes(100)
    done = make_child("train", "complete", attempt=2)
    story.sees(done, pods=(ended_pod(done, exit_code=0, message=trained_message().encode()),))
    traced.write()

    assert traced.told() == [
        ("prepare", 0, 20, ""),
        ("start", 20, 85, ""),
        ("train", 85, 385, "StorageUnavailable"),
        ("start", 385, 425, ""),
        ("train", 425, 525, ""),
        ("FineTuneJob", 0, 525, ""),
    ]
    assert {span.trace for span in traced.spans} == {RUN.trace}
    assert [span.parent for span in traced.spans] == [RUN.root] * 5 + [None]
    assert traced.spans[-1].identity == RUN.root
    assert [span.attributes["finetune.attempt"] for span in traced.spans] == [1, 1, 1, 2, 2, 2]


def test_a_job_whose_data_are_bad_has_a_short_one() -> None:
    traced = Traced()
    traced.story.sees()
    traced.passes(15)
    traced.story.sees(failed_child("prepare", ExitCode.DATASET_INVALID))
    traced.write()
    assert traced.told() == [("prepare", 0, 15, "DatasetInvalid"), ("FineTuneJob", 0, 15, "DatasetInvalid")]


def test_an_attempt_that_never_got_going_is_told_as_well() -> None:
    traced = Traced()
    story = traced.story
    train = story.is_prepared()
    story.sees(train, pods=(make_pod(train, "Pending"),))
    traced.passes(30)
    story.sees(failed_child("train", ExitCode.STORAGE_UNAVAILABLE))
    traced.write()
    assert traced.told()[-1] == ("failed", 0, 30, "StorageUnavailable")


def test_a_suspension_is_a_part_of_it() -> None:
    traced = Traced()
    story = traced.story
    train = story.is_prepared()
    story.sees(train, pods=(make_pod(train),))
    traced.passes(30)
    story.job = replace(story.job, spec=make_spec(lifecycle={"suspend": True}))
    story.sees(train, pods=(make_pod(train),))
    story.sees()
    traced.passes(600)
    story.job = replace(story.job, spec=make_spec())
    story.sees()
    traced.write()
    assert traced.told()[-2:] == [("train", 0, 30, ""), ("suspended", 30, 630, "")]


def test_requests_belong_to_the_reconcile_that_makes_them() -> None:
    spans: list[Span] = []
    tracing = Tracing(spans.append)
    with pytest.raises(ValueError, match="a bug"), tracing.reconciling(("team", "bot")):  # noqa: PT012
        tracing.answered("PATCH", "/apis/x", "200", time.time_ns())
        tracing.answered("POST", "/apis/y", "503", time.time_ns())
        raise ValueError("a bug")
    tracing.answered("GET", "/apis/list", "<error>", time.time_ns())
    patch, post, reconcile, get = spans
    assert patch.trace == post.trace == reconcile.trace != get.trace
    assert patch.parent == post.parent == reconcile.identity
    assert get.parent is None
    assert [span.error for span in spans] == ["", "503", "ValueError: a bug", "<error>"]
    assert patch.attributes["http.response.status_code"] == 200


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as collector:
        monkeypatch.setenv(ENDPOINT, collector.endpoint)
        yield collector


def config() -> RunConfig:
    job = JobIdentity(name="bot", namespace="team", uid=UID, run=1, attempt=2)
    return RunConfig(job=job, spec=TuningSpec.model_validate(make_spec()), config_hash="")


def test_operator_and_trainer_meet_in_one_trace(collector: Collector) -> None:
    with traced("prepare", config()), step("read"):
        pass
    sender = Sender("finetune-operator")
    sender.send(Span("FineTuneJob", RUN.trace, None, 1, 2, identity=RUN.root, error="OutOfMemory"))
    sender.close()

    services = [service for service, _ in collector.spans]
    read, prepare, job = [span for _, span in collector.spans]
    assert services == ["finetune-trainer", "finetune-trainer", "finetune-operator"]
    assert (read.name, prepare.name, job.name) == ("read", "prepare", "FineTuneJob")
    assert read.parent_span_id == prepare.span_id
    assert prepare.parent_span_id == job.span_id == RUN.root.to_bytes(8, "big")
    assert read.trace_id == prepare.trace_id == job.trace_id == RUN.trace.to_bytes(16, "big")
    assert {item.key for item in prepare.attributes} >= {"finetune.job", "finetune.attempt"}
    assert (job.status.message, job.start_time_unix_nano, job.end_time_unix_nano) == ("OutOfMemory", 1, 2)


def test_a_running_operator_counts_and_traces(collector: Collector) -> None:
    watching = Watching(Metrics(jobs=list, depth=int))
    story = Story()
    before = story.job
    story.sees()
    story.sees(failed_child("prepare", ExitCode.DATASET_INVALID))
    with watching.reconciling(("team", "bot")):
        watching.answered("PATCH", "/apis/x", "200", time.time_ns())
        watching.wrote(before, story.job.status)
    watching.close()
    assert watching.endpoint == collector.endpoint
    assert {(service, span.name) for service, span in collector.spans} == {
        ("finetune-operator", name) for name in ("PATCH", "prepare", "FineTuneJob", "reconcile")
    }
    assert b'rest_client_requests_total{code="200",method="PATCH"} 1.0' in watching._metrics.text()


def test_a_stage_that_fails_says_why(collector: Collector) -> None:
    with pytest.raises(ValueError, match="line 7"), traced("prepare", config()):
        raise ValueError("line 7 is not JSON")
    ((_, span),) = collector.spans
    assert span.status.message == "ValueError: line 7 is not JSON"


@pytest.mark.parametrize(("name", "value"), [("RANK", "1"), ("OTEL_SDK_DISABLED", "true"), (ENDPOINT, "")])
def test_who_does_not_speak(name: str, value: str, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with traced("train", config()), step("steps"):
        pass
    assert collector.spans == []


def test_a_collector_that_is_away_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setattr(contract, "_PATIENCE", 0.1)
    began = time.monotonic()
    with traced("train", config()):
        pass
    assert time.monotonic() - began < 5


def test_off_it_is_not_even_imported() -> None:
    code = """
import sys
import finetune_operator.main, finetune_trainer.stage
from finetune_operator.observability.watching import Watching
from finetune_operator.observability.metrics import Metrics
Watching(Metrics(jobs=list, depth=int))
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
