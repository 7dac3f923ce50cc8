"""What the commands about a cluster's jobs show and send; the way to the API is an end-to-end test's."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from finetune_operator.api.parse import parse_job
from finetune_operator.cli.__main__ import main
from finetune_operator.cli.control import patch_of
from finetune_operator.cli.diff import difference
from finetune_operator.cli.job_lines import describe, table
from finetune_operator.cli.kubectl import Kubectl, KubectlError
from finetune_operator.cli.watch import line_of, looks
from finetune_operator.cli.watch_view import History, picture, sparkline
from tests.support.builders import NOW, make_spec

READY = {"type": "Ready", "status": "False", "lastTransitionTime": "2026-11-24T12:00:00Z"}
PROGRESS = {
    "step": 120, "totalSteps": 400, "percent": 30, "loss": 0.5123, "evalLoss": 0.61, "tokensPerSecond": 2310.4,
    "mfu": 0.412, "eta": "1h3m", "etaSeconds": 3780, "updatedAt": "2026-11-24T12:00:00Z",
}  # fmt: skip
RUNNING = {
    "phase": "Running", "run": 1, "attempt": 2, "restarts": {"failures": 1, "disruptions": 0},
    "startTime": "2026-11-24T10:00:00Z", "progress": PROGRESS,
    "checkpoint": {"uri": "s3://out/run-1/checkpoints", "step": 100},
    "conditions": [{**READY, "reason": "Training", "message": "the trainer works"}],
}  # fmt: skip
WAITING = {
    "phase": "Starting",
    "conditions": [{**READY, "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient gpu."}],
}
QUEUED = {"queue": {"name": "tuning", "waitingSince": "2026-11-24T11:56:40Z", "waitedSeconds": 60}}
FAILED = {
    "phase": "Failed",
    "lastFailure": {
        "class": "UserError", "reason": "DatasetInvalid", "exitCode": 12, "attempt": 1, "stage": "prepare",
        "message": "train.jsonl line 7: not JSON", "time": "2026-11-24T12:00:00Z",
    },
    "conditions": [{**READY, "reason": "DatasetInvalid", "message": "train.jsonl line 7: not JSON"}],
}  # fmt: skip


def body(status: dict[str, Any] | None = None, name: str = "bot", *, minutes: int = 5) -> dict[str, Any]:
    created = (NOW - timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
    meta = {"name": name, "namespace": "team", "uid": name, "resourceVersion": "1", "creationTimestamp": created}
    return {"metadata": meta, "spec": make_spec(), "status": status or {}}


def text_of(status: dict[str, Any]) -> str:
    return "\n".join(describe(body(status), NOW))


def test_a_line_a_job_the_youngest_last() -> None:
    header, old, young = table([body(RUNNING, "b", minutes=1), body(FAILED, "a", minutes=90)], NOW)
    assert header.split() == ["NAME", "METHOD", "PHASE", "PROGRESS", "LOSS", "ETA", "AGE"]
    assert old.split() == ["a", "LoRA", "Failed", "1h30m"]
    assert young.split() == ["b", "LoRA", "Running", "30", "%", "0.5123", "1h3m", "1m"]
    assert list(table([], NOW)) == ["there are no FineTuneJobs in this namespace"]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        pytest.param({}, "not seen by an operator yet", id="new"),
        pytest.param(RUNNING, "step 120/400  30 %  loss 0.5123  held out 0.61  2,310 tokens/s  MFU 41%", id="progress"),
        pytest.param(RUNNING, "run       1, attempt 2 (1 retried), 2h", id="attempts"),
        pytest.param(RUNNING, "a checkpoint of step 100 at s3://out/run-1/checkpoints", id="checkpoint"),
        pytest.param(WAITING, "Starting, Unschedulable: 0/3 nodes are available", id="why it waits"),
        pytest.param(QUEUED, "queue     tuning, waits for 3m20s, waited 1m before", id="queue"),
        pytest.param(FAILED, "attempt 1, DatasetInvalid, exit code 12: train.jsonl line 7: not JSON", id="failure"),
    ],
)
def test_status_says_in_words_how_a_job_stands(status: dict[str, Any], said: str) -> None:
    assert said in text_of(status)


@pytest.mark.parametrize(
    ("values", "curve"),
    [([], ""), ([3.0], "▁"), ([4.0, 3.0, 2.0, 1.0], "█▆▃▁"), ([float(n) for n in range(240, 0, -1)], "█")],
    ids=["none", "one", "falling", "more than places"],
)
def test_a_curve_of_one_line(values: list[float], curve: str) -> None:
    found = sparkline(values)
    assert found.startswith(curve)
    assert len(found) == min(len(values), 60)


def test_the_view_shows_curve_figures_and_events() -> None:
    history = History()
    for step, loss in ((10, 2.0), (20, 1.0)):
        history.see(parse_job(body({**RUNNING, "progress": {**PROGRESS, "step": step, "loss": loss}})).status)
    events = [{"reason": "Training", "message": "the trainer works", "lastTimestamp": "2026-11-24T12:00:07Z"}]
    console = Console(file=io.StringIO(), width=100)
    console.print(picture(body(RUNNING), events, history))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for words in ("team/bot", "Running", "█▁", "120/400", "2,310 tokens/s", "12:00:07  Training  the trainer works"):
        assert words in shown


def test_watching_ends_with_the_job_and_survives_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([body(RUNNING), KubectlError("away"), body(FAILED)])

    def answer(*_: Any) -> dict[str, Any]:
        found = next(answers)
        if isinstance(found, KubectlError):
            raise found
        return found

    monkeypatch.setattr(Kubectl, "job", answer)
    lines = [line_of(parse_job(each).status) for each in looks(Kubectl(), "bot", every=0)]
    assert [line.split()[0] for line in lines] == ["Running", "Failed"]


def test_a_job_that_is_not_there_is_said_in_kubectls_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: Any) -> None:
        raise KubectlError('finetunejobs.finetuning.dev "bot" not found')

    monkeypatch.setattr(Kubectl, "job", missing)
    assert main(["watch", "bot"]) == 1
    assert capsys.readouterr().err == 'finetune watch: finetunejobs.finetuning.dev "bot" not found\n'


def test_without_kubectl_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["status"]) == 1
    assert "kubectl is not on PATH" in capsys.readouterr().err


OUTPUT = make_spec()["output"]


@pytest.mark.parametrize(
    ("command", "patch"),
    [
        ("suspend", {"spec": {"lifecycle": {"suspend": True}}}),
        ("resume", {"spec": {"lifecycle": {"suspend": False}}}),
        ("rerun", {"metadata": {"annotations": {"finetuning.dev/rerun": "2026-11-24T12:00:00+00:00"}}}),
    ],
)
def test_a_word_is_a_patch(command: str, patch: dict[str, Any]) -> None:
    assert patch_of(command, datetime(2026, 11, 24, 12, tzinfo=UTC)) == patch


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param(
            {"hyperparameters": {"epochs": 1}},
            ["+ hyperparameters.epochs: 1", "It is refused: hyperparameters.epochs is fixed after creation."],
            id="refused",
        ),
        pytest.param(
            {"method": "QLoRA", "lifecycle": {"onSpecChange": "Rerun"}},
            ['+ lifecycle.onSpecChange: "Rerun"', '- method: "LoRA"', '+ method: "QLoRA"', "It is a new run"],
            id="a new run",
        ),
        pytest.param(
            {"lifecycle": {"suspend": True}, "scheduling": {"priorityClass": "high"}},
            ["+ lifecycle.suspend: true", '+ scheduling.priorityClass: "high"', "It takes effect as the job goes on"],
            id="as it goes on",
        ),
        pytest.param(
            {"output": {**OUTPUT, "ifExists": "Adopt"}, "lifecycle": {"onSpecChange": "Rerun"}},
            ['+ lifecycle.onSpecChange: "Rerun"', '+ output.ifExists: "Adopt"', "It takes effect as the job goes on"],
            id="another word about outputs",
        ),
        pytest.param(
            {"output": {**OUTPUT, "ifExists": "Adopt"}},
            ['+ output.ifExists: "Adopt"', "It is refused: output.ifExists is fixed after creation."],
            id="another word about outputs of a job that is fixed",
        ),
        pytest.param(
            {"method": "QLoRA", "output": {**OUTPUT, "ifExists": "Adopt"}, "lifecycle": {"onSpecChange": "Rerun"}},
            [
                '+ lifecycle.onSpecChange: "Rerun"',
                '- method: "LoRA"',
                '+ method: "QLoRA"',
                '+ output.ifExists: "Adopt"',
                "It is a new run",
            ],
            id="another word about outputs beside another method",
        ),
    ],
)
def test_a_difference_says_what_follows_from_it(changes: dict[str, Any], said: list[str]) -> None:
    found = list(difference(make_spec(), make_spec(**changes)))
    assert len(found) == len(said)
    assert all(line.startswith(start) for line, start in zip(found, said, strict=True))
