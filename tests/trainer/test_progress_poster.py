"""Progress posts: what they say, how often, and that nothing that happens to them reaches training."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune_contract import paths
from finetune_contract.progress import ProgressPost, finite_metrics
from finetune_trainer.reporting import progress
from finetune_trainer.reporting.progress import Poster, Progress, StepClock, status_of


class Server:
    """A status server that remembers what it is told."""

    def __init__(self, *, status: int = 200, delay: float = 0.0) -> None:
        self.posts: list[ProgressPost] = []
        self.tokens: list[str | None] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(delay)
                served.posts.append(ProgressPost.model_validate_json(body))
                served.tokens.append(self.headers["Authorization"])
                self.send_response(status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._http.server_port}/"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(progress, "INTERVAL", 0.2)
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def poster(url: str | None, token_file: Path | None = None) -> Poster:
    return Poster(url=url, ca_file=None, token_file=token_file)


def test_a_post_says_what_the_contract_names(tmp_path: Path) -> None:
    with Server() as server:
        state = Progress(poster(server.url))
        state.update(remaining_seconds=12.4, step=5, totalSteps=20, loss=1.25, evalLoss=None, learningRate=2e-4)
        state.close()

    post = server.posts[-1].trainer_status
    assert (post.progress_percentage, post.estimated_remaining_seconds) == (25, 12)
    assert finite_metrics(post) == {"step": 5, "totalSteps": 20, "loss": 1.25, "learningRate": 2e-4}
    assert post.last_updated_time is not None


def test_what_is_known_stays_in_later_posts() -> None:
    with Server() as server:
        state = Progress(poster(server.url))
        state.update(step=1, totalSteps=2, evalLoss=3.0)
        state.update(step=2)
        state.close()

    assert finite_metrics(server.posts[-1].trainer_status) == {"step": 2, "totalSteps": 2, "evalLoss": 3.0}


def test_only_the_newest_of_many_is_sent() -> None:
    with Server() as server:
        state = Progress(poster(server.url))
        for step in range(1, 101):
            state.update(step=step, totalSteps=100)
        state.close()

    assert len(server.posts) <= 3
    assert finite_metrics(server.posts[-1].trainer_status)["step"] == 100


def test_a_number_that_is_not_finite_is_left_out() -> None:
    status = status_of({"step": 1, "totalSteps": 2, "loss": float("nan")}, remaining_seconds=None)

    assert finite_metrics(status) == {"step": 1, "totalSteps": 2}
    json.loads(ProgressPost(trainer_status=status).to_json())


def test_the_token_is_read_anew_for_every_post(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    with Server() as server:
        sender = poster(server.url, token)
        state = Progress(sender)
        state.update(step=1)
        _wait_for(lambda: len(server.posts) == 1)
        token.write_text("second\n")
        state.update(step=2)
        state.close()

    assert server.tokens == ["Bearer first", "Bearer second"]


def test_a_slow_server_holds_nothing_up() -> None:
    with Server(delay=0.5) as server:
        state = Progress(poster(server.url))
        begin = time.monotonic()
        for step in range(50):
            state.update(step=step)
        assert time.monotonic() - begin < 0.25
        state.close()


@pytest.mark.parametrize("status", [401, 500, 503])
def test_refusals_are_logged_once(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with Server(status=status) as server:
        state = Progress(poster(server.url))
        state.update(step=1)
        _wait_for(lambda: len(server.posts) == 1)
        state.update(step=2)
        state.close()

    assert len(server.posts) == 2
    assert caplog.text.count("progress cannot be posted") == 1


def test_a_server_that_is_away_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    state = Progress(poster("http://127.0.0.1:9/"))
    state.update(step=1)
    state.close()

    assert caplog.text.count("progress cannot be posted") == 1


def test_a_missing_token_file_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = Progress(poster("http://127.0.0.1:9/", tmp_path / "none"))
    state.update(step=1)
    state.close()

    assert caplog.text.count("progress cannot be posted") == 1


def test_a_missing_ca_file_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sender = Poster(url="https://127.0.0.1:9/", ca_file=tmp_path / "none.crt", token_file=None)
    sender.close()

    assert "CA file" in caplog.text


@pytest.mark.parametrize(("variable", "value"), [("RANK", "1"), (paths.ENV_PROGRESS_URL, "")])
def test_other_ranks_and_runs_without_a_server_are_silent(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    with Server() as server:
        monkeypatch.setenv(paths.ENV_PROGRESS_URL, server.url)
        monkeypatch.setenv(variable, value)
        state = Progress(Poster.from_env())
        state.update(step=1)
        state.close()

    assert server.posts == []


def test_the_time_left_follows_the_recent_steps() -> None:
    clock = StepClock()
    assert clock.seconds_a_step() is None
    for step in range(100):  # slow at first
        clock.step_ended(step, tokens=step * 10, now=step * 5.0)
    for step in range(100, 140):
        clock.step_ended(step, tokens=step * 10, now=500.0 + (step - 100) * 2.0)

    assert clock.seconds_a_step() == pytest.approx(2.0)
    assert clock.tokens_per_second() == pytest.approx(5.0)


def _wait_for(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("did not happen")
