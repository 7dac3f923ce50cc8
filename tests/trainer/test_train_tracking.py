"""Trackers: figures reach a real MLflow server, W&B's and TensorBoard's files, and a broken one costs nothing."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune_contract import paths
from finetune_trainer.reporting import tracking
from finetune_trainer.reporting.tracking import Tracker
from tests.support.mlflow import mlflow_server
from tests.support.prepared import Case
from tests.support.processes import COMMAND, container_environment
from tests.support.training import THIRD_PARTY, Outcome, make_case, stopped, train

pytestmark = THIRD_PARTY

STEPS = 6


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trackers are told by variables of the process; these are the stage's defaults, and end with the test."""
    for name, value in {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    yield
    Tracker.left_behind = False
    os.environ.clear()
    os.environ.update(before)


def tracked(folder: Path, **trackers: Any) -> Case:
    return make_case(folder, spec={"tracking": trackers}, total_steps=STEPS, checkpoint_every_steps=100)


def stopped_and_resumed(case: Case, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    stopped(case, after=3, monkeypatch=monkeypatch)
    return train(case.attempt(2))


def test_all_attempts_of_a_run_are_one_run_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    with mlflow_server(tmp_path) as url:
        case = tracked(tmp_path / "job", mlflow={"trackingUri": url, "experiment": "sums"})
        outcome = stopped_and_resumed(case, monkeypatch)

        client = MlflowClient(url)
        experiment = client.get_experiment_by_name("sums")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        losses = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}

    assert losses == outcome.losses
    assert (run.info.run_name, run.info.status) == ("adder-run-1", "FINISHED")
    assert run.data.tags["finetune.method"] == "LoRA"
    assert run.data.params["learning_rate"] == "0.005"
    assert run.data.metrics["eval_loss"] == pytest.approx(outcome.held_out_losses[STEPS])


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """Return a scalar's steps and values from event files: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found += [(event.step, value.simple_value) for value in event.summary.value if value.tag == name]
            at += 12 + length + 4
    return found


def test_event_files_are_whole_and_among_the_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = stopped_and_resumed(tracked(tmp_path, tensorboard={}), monkeypatch)

    found = scalars(outcome.run / paths.TENSORBOARD, "train/loss")
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    assert dict(found) == pytest.approx(outcome.losses)
    listed = [file["path"] for file in json.loads((outcome.run / paths.MANIFEST).read_text())["files"]]
    assert any(path.startswith("tensorboard/events.out.tfevents") for path in listed)


def test_an_offline_run_of_wandb_is_among_the_outputs(tmp_path: Path) -> None:
    case = tracked(tmp_path, wandb={"project": "sums", "mode": "offline"})

    done = run_as_a_process(case)

    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    (file,) = (case.run / paths.WANDB).glob("offline-run-*/run-*.wandb")
    assert file.stat().st_size > 1000
    assert not [path for path in (case.run / paths.WANDB).rglob("*") if path.is_symlink()]


def run_as_a_process(case: Case) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        COMMAND, env=container_environment(case), capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class _Refuses(BaseHTTPRequestHandler):
    seen: list[str | None] = []

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization"))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def refusing_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_tracker_that_refuses_is_warned_about_once(
    tmp_path: Path, refusing_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRACKING_MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("TRACKING_MLFLOW_TRACKING_PASSWORD", "s3cret")

    outcome = train(tracked(tmp_path, mlflow={"trackingUri": refusing_server}))

    assert len(outcome.losses) == STEPS
    assert caplog.text.count("MLflow: ") == 1
    assert "s3cret" not in caplog.text
    assert set(_Refuses.seen) == {"Basic YWRhOnMzY3JldA=="}


def test_a_tracker_that_hangs_is_left_behind(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "CLOSE", 0.2)

    outcome = train(tracked(tmp_path, mlflow={"trackingUri": silent_server}))

    assert len(outcome.losses) == STEPS
    assert caplog.text.count("it did not take everything") == 1
    assert Tracker.left_behind


def test_a_tracker_left_behind_does_not_hold_the_process() -> None:
    code = (
        "import threading, time; from finetune_trainer import __main__ as entry\n"
        "from finetune_trainer.reporting import tracking\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "tracking.Tracker.left_behind = True\n"
        "entry._leave_stuck_trackers(7)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 7
