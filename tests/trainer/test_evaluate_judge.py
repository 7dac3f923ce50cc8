"""The judge: what it is asked, what its replies count for, and that it can do the run no harm."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_contract import paths
from finetune_contract.evaluation import JudgeVerdict
from finetune_contract.outcome import Manifest, TerminationMessage
from finetune_contract.run_config import RunConfig, Use
from finetune_trainer.data.dataset import Question
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.chat_client import ChatClient, ChatError, Patience
from finetune_trainer.evaluation.judge import FOLDER, Judged, Pair, judge_pairs
from finetune_trainer.evaluation.judge_prompt import read
from finetune_trainer.preemption import PREEMPTION
from finetune_trainer.stage import run_stage
from finetune_trainer.storage import open_store
from tests.support.judges import FakeJudge, answer, serving, transformers_serve
from tests.support.models import smollm2
from tests.support.prepared import Case, make_config
from tests.support.training import THIRD_PARTY, forget_preemption, make_case

pytestmark = THIRD_PARTY

KEY = "sk-a-secret-of-the-judge"
V = JudgeVerdict


@pytest.fixture
def fake() -> Iterator[FakeJudge]:
    with serving(FakeJudge()) as judge:
        yield judge


@pytest.fixture
def config(tmp_path: Path, fake: FakeJudge) -> RunConfig:
    return judged_by(tmp_path, fake.endpoint)


def judged_by(folder: Path, endpoint: str, **judge: Any) -> RunConfig:
    evaluation = {"judge": {"endpoint": endpoint, "model": "judge-1", **judge}}
    return make_config(output_uri=f"file://{folder}/out", model_uri="file:///model", evaluation=evaluation)


def pairs(count: int, base: str = "bad", tuned: str = "good") -> list[Pair]:
    return [Pair(Question(f"question {n}", "good"), base, tuned) for n in range(count)]


def hurried(seconds: float = 20, **changes: Any) -> Patience:
    return Patience(deadline=time.monotonic() + seconds, **{"first_wait": 0.01, "longest_wait": 0.02, **changes})


def ask(asked: list[Pair], config: RunConfig, patience: Patience | None = None) -> Judged:
    store = open_store(config.spec.output.uri, Use.OUTPUT)
    return judge_pairs(asked, config=config, store=store, patience=patience or hurried())


def shown(chat: str) -> tuple[str, str]:
    """The two answers in a question to the judge, in their order."""
    found = re.findall(r"\[Answer [AB]\]\n(.*?)\n\[End of answer", chat, re.DOTALL)
    return found[0], found[1]


def prefers(wanted: str) -> Callable[[str], str]:
    """A fair judge: the same answer whatever the order."""

    def reply(chat: str) -> str:
        first, second = (wanted in text for text in shown(chat))
        verdict = "C" if first == second else "A" if first else "B"
        return f"Neither [[A]] nor [[B]] is perfect.\n[[{verdict}]]"

    return reply


# What replies count for.


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Both are fine, but A is right.\n\n[[A]]", "A"),
        ("[[A]] was my first thought, and yet: [[B]]", "B"),
        ("[[ c ]]", "C"),
        ("[[tie]]", "C"),
        ("B", "B"),
        ("**Verdict: A**", "A"),
        ("Answer A is better.", None),
        ("I cannot compare them.", None),
        ("A or B", None),
        ("", None),
    ],
)
def test_a_reply_has_a_verdict_or_none(reply: str, verdict: str | None) -> None:
    assert read(reply) == verdict


@pytest.mark.parametrize(
    ("reply", "verdict", "score"),
    [
        pytest.param(prefers("good"), V.TUNED, [1.0], id="tuned in both orders"),
        pytest.param(prefers("bad"), V.BASE, [0.0], id="base in both orders"),
        pytest.param(lambda _: "[[C]]", V.TIE, [0.5], id="tie"),
        pytest.param(lambda _: "[[A]]", V.CONTRADICTORY, [0.5], id="always the first"),
        pytest.param(lambda _: "[[B]]", V.CONTRADICTORY, [0.5], id="always the second"),
        pytest.param(lambda chat: "[[A]]" if shown(chat)[0] == "good" else "[[C]]", V.CONTRADICTORY, [0.5], id="half"),
        pytest.param(lambda _: "What a lovely day!", V.UNCLEAR, [], id="nonsense"),
        pytest.param(lambda chat: "[[B]]" if shown(chat)[1] == "good" else "?", V.UNCLEAR, [], id="nonsense once"),
    ],
)
def test_a_verdict_counts_if_both_orders_agree(
    fake: FakeJudge, config: RunConfig, reply: Callable[[str], str], verdict: JudgeVerdict, score: list[float]
) -> None:
    fake.reply = reply

    judged = ask(pairs(1), config)

    assert judged.verdicts == (verdict,)
    assert judged.scores == score
    assert len(fake.requests) == 2


def test_equal_answers_are_a_tie_that_nobody_is_asked_about(fake: FakeJudge, config: RunConfig) -> None:
    assert ask(pairs(3, base="same ", tuned="same"), config).verdicts == (V.TIE,) * 3
    assert fake.requests == []


def test_the_judge_sees_request_reference_and_rubric(tmp_path: Path, fake: FakeJudge) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    config = judged_by(tmp_path, fake.endpoint + "/", rubric="The shorter one is better.", maxTokens=7)

    ask([Pair(Question(chat, "4"), "five", "four")], config)

    body = fake.requests[0]
    assert (body["model"], body["temperature"], body["max_completion_tokens"]) == ("judge-1", 0, 7)
    system, user = (message["content"] for message in body["messages"])
    assert "The shorter one is better." in system
    assert "system: Be brief.\nuser: 2 + 2?" in user
    assert "[Reference answer]\n4\n" in user
    assert {shown(request["messages"][1]["content"]) for request in fake.requests} == {
        ("five", "four"),
        ("four", "five"),
    }
    assert fake.paths == {"/v1/chat/completions"}


def test_no_attempt_asks_a_question_twice(fake: FakeJudge, config: RunConfig) -> None:
    fake.reply = prefers("good")
    first = ask(pairs(4), config)

    again = ask(pairs(5), config)

    assert first.verdicts == (V.TUNED,) * 4
    assert again.verdicts == (V.TUNED,) * 5
    assert len(fake.requests) == 10


def test_replies_are_kept_in_a_bucket_by_several_threads(bucket: str, fake: FakeJudge) -> None:
    fake.reply = prefers("good")
    evaluation = {"judge": {"endpoint": fake.endpoint, "model": "judge-1"}}
    config = make_config(output_uri=f"{bucket}/out", model_uri="file:///model", evaluation=evaluation)

    assert ask(pairs(8), config).verdicts == ask(pairs(8), config).verdicts == (V.TUNED,) * 8
    assert len(fake.requests) == 16


def test_a_file_of_the_cache_that_is_damaged_is_asked_again(tmp_path: Path, fake: FakeJudge, config: RunConfig) -> None:
    ask(pairs(1), config)
    for path in (tmp_path / "out" / "run-1" / FOLDER).iterdir():
        path.write_text("{")

    assert ask(pairs(1), config).verdicts == (V.TIE,)
    assert len(fake.requests) == 4


# The key.


@pytest.mark.parametrize("variable", ["JUDGE_OPENAI_API_KEY", "OPENAI_API_KEY"])
def test_the_key_is_sent_and_nowhere_else(
    fake: FakeJudge, config: RunConfig, monkeypatch: pytest.MonkeyPatch, variable: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that shows its caller's headers in an error is common enough."""
    monkeypatch.setenv(variable, KEY)
    fake.behave = lambda _, handler: answer(handler, 422, f"bad request by {handler.headers['Authorization']}".encode())

    with caplog.at_level(logging.DEBUG):
        judged = ask(pairs(1), config)

    assert fake.keys == {f"Bearer {KEY}"}
    assert judged.warning is not None
    assert "bad request by Bearer ***" in judged.warning
    assert KEY not in judged.warning + caplog.text


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_with_the_key(
    fake: FakeJudge, config: RunConfig, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("JUDGE_OPENAI_API_KEY", KEY)
    with serving(FakeJudge()) as other:
        fake.behave = lambda _, handler: answer(handler, status, b"", Location=f"{other.endpoint}/chat/completions")

        judged = ask(pairs(1), config)

    assert other.keys == set()
    assert f"it redirects ({status})" in str(judged.warning)


# Servers as they are.


def fails_first(status: int, times: int) -> Callable[[int, Any], bool]:
    return lambda number, handler: number < times and answer(handler, status, b"overloaded")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(fake: FakeJudge, config: RunConfig, status: int) -> None:
    fake.behave = fails_first(status, times=2)

    assert ask(pairs(1), config).verdicts == (V.TIE,)
    assert len(fake.requests) == 4


class Waits(threading.Event):
    """Remembers how long it was waited for, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return self.is_set()


def test_waits_grow_and_a_server_that_asks_for_time_gets_it(fake: FakeJudge, config: RunConfig) -> None:
    fake.behave = lambda number, handler: (
        number < 4 and answer(handler, 429, b"", **({"Retry_After": "20"} if number == 3 else {}))
    )
    stop = Waits()

    judged = ask(pairs(1), config, Patience(deadline=time.monotonic() + 600, first_wait=1, longest_wait=30, stop=stop))

    assert judged.verdicts == (V.TIE,)
    assert [round(seconds / expected) for seconds, expected in zip(stop.seconds, (1, 2, 4, 20), strict=True)] == [1] * 4


def test_a_model_that_takes_no_temperature_is_asked_without(fake: FakeJudge, config: RunConfig) -> None:
    fake.behave = lambda number, handler: (
        "temperature" in fake.requests[number]
        and answer(handler, 400, {"error": {"message": "Unsupported value: 'temperature' does not support 0"}})
    )

    assert ask(pairs(3), config).counts.tie == 3
    assert fake.requests[-1].keys() == {"model", "messages"}


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "refuses the key (401): OPENAI_API_KEY in the Secret"), (403, "refuses the key"), (404, "it answered 404")],
)
def test_what_is_hopeless_is_not_tried_for_every_pair(
    fake: FakeJudge, config: RunConfig, status: int, says: str
) -> None:
    fake.behave = lambda _, handler: answer(handler, status, b"no such model")

    judged = ask(pairs(50), config)

    assert judged.verdicts == (None,) * 50
    assert len(fake.requests) < len(judged.verdicts)  # what the threads had begun before they heard of it
    assert says in str(judged.warning)
    assert judged.warning is not None
    assert judged.warning.startswith("evaluation.judge gave no verdict on 50 of 50 pairs (")


def test_a_server_that_is_not_there_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        judged = ask(pairs(50), judged_by(tmp_path, f"http://127.0.0.1:{closed.getsockname()[1]}/v1"))

    assert judged.counts.unanswered == 50
    assert "no answer: " in str(judged.warning)


def test_a_server_that_never_recovers_is_given_up(fake: FakeJudge, config: RunConfig) -> None:
    fake.behave = lambda _, handler: answer(handler, 503, b"overloaded")

    judged = ask(pairs(50), config)

    assert judged.counts.unanswered == 50
    assert "it answered 503 overloaded" in str(judged.warning)
    assert len(fake.requests) < 50  # each pair alone is five


def test_what_is_no_reply_is_nonsense_and_asked_once(fake: FakeJudge, config: RunConfig) -> None:
    bodies = [b"<html>Welcome!</html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}']
    fake.behave = lambda number, handler: answer(handler, 200, bodies[number % 4])

    judged = ask(pairs(2), config)

    assert judged.verdicts == (V.UNCLEAR, V.UNCLEAR)
    assert judged.warning == "evaluation.judge answered nonsense on 2 of 2 pairs."
    assert len(fake.requests) == 4


def drips(_: int, handler: Any) -> bool:
    """Begins to answer, and sends a blank from time to time for ever."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        try:
            handler.wfile.write(b" ")
        except OSError:
            return True
        time.sleep(0.05)
    return True


def hangs(_: int, handler: Any) -> bool:
    """Takes the request and says nothing."""
    handler.rfile.read(1)
    return True


@pytest.mark.parametrize("behave", [drips, hangs])
def test_a_question_ends_at_the_deadline(fake: FakeJudge, behave: Callable[[int, Any], bool]) -> None:
    fake.behave = behave
    client = ChatClient(fake.endpoint, "m", key=None, max_tokens=1, patience=hurried(seconds=0.5))

    with pytest.raises(ChatError, match="no "):
        client.ask([{"role": "user", "content": "?"}])


@pytest.mark.parametrize("behave", [drips, hangs])
def test_a_slow_server_costs_no_more_than_the_time_limit(
    fake: FakeJudge, config: RunConfig, behave: Callable[[int, Any], bool]
) -> None:
    fake.behave = lambda number, handler: number >= 4 and behave(number, handler)
    fake.reply = prefers("good")

    judged = ask(pairs(10), config, hurried(seconds=1.5))

    # Two pairs were decided by the first four requests, or the same number of threads have one half of a pair each.
    assert judged.counts.unanswered >= 8
    assert judged.counts.tuned == 10 - judged.counts.unanswered
    assert judged.warning is not None


def test_a_signal_stops_the_questions(fake: FakeJudge, config: RunConfig) -> None:
    fake.behave = hangs
    PREEMPTION.request()
    try:
        with pytest.raises(TrainerError, match="SIGTERM"):
            ask(pairs(3), config)
    finally:
        forget_preemption()


# Within a run.

EVALUATION = {"metrics": ["exactMatch"], "maxNewTokens": 3, "gates": [{"metric": "judge", "min": 0.5}]}


def judged_case(folder: Path, endpoint: str) -> Case:
    judge = {"endpoint": endpoint, "model": "judge-1", "timeoutSeconds": 5}
    return make_case(
        folder, spec={"evaluation": {**EVALUATION, "judge": judge}}, total_steps=4, learning_rate=5e-2, method="Full"
    )


def last_word(case: Case) -> TerminationMessage:
    case.env.config.write_text(case.config.to_json())
    run_stage("train", case.env)
    message = TerminationMessage.decode(case.env.termination_log.read_text())
    assert message is not None
    return message


def test_verdicts_reach_status_report_and_evaluation(tmp_path: Path, fake: FakeJudge) -> None:
    message = last_word(judged_case(tmp_path, fake.endpoint))

    assert message.reason == "Completed"
    assert message.trained is not None
    found = message.trained.evaluation
    assert found is not None
    assert (found.base.judge, found.tuned.judge) == (0.5, 0.5)
    assert found.judge is not None
    assert found.judge.tie == found.judge.pairs == 5
    assert [(gate.metric, gate.passed) for gate in found.gates] == [("judge", True)]
    run = tmp_path / "out" / "run-1"
    evaluation = json.loads((run / paths.EVALUATION).read_text())
    assert [exchange["verdict"] for exchange in evaluation["examples"]] == ["Tie"] * 5
    assert "Preferred by the judge" in (run / paths.REPORT).read_text()


def test_a_judge_that_fails_never_loses_the_model(tmp_path: Path, fake: FakeJudge) -> None:
    fake.behave = lambda _, handler: answer(handler, 401, b"who are you?")

    message = last_word(judged_case(tmp_path, fake.endpoint))

    # A gate on what could not be measured is not passed; the outputs are there all the same.
    assert message.reason == "GateFailed"
    assert "judge could not be measured" in message.message
    run = tmp_path / "out" / "run-1"
    manifest = Manifest.model_validate_json((run / paths.MANIFEST).read_bytes())
    assert "merged" in manifest.artifacts
    assert manifest.evaluation is not None
    assert "it refuses the key (401)" in manifest.evaluation.warnings[0]
    assert "it refuses the key (401)" in (run / paths.REPORT).read_text()


def test_a_real_server_is_asked_and_its_replies_are_counted(tmp_path: Path) -> None:
    """SmolLM2-135M judges no better than a coin, if it gives verdicts at all: what counts is that it was understood."""
    asked = [Pair(Question("What is the capital of France?", "Paris"), "London", "Paris")] * 2
    with transformers_serve(smollm2()) as endpoint:
        config = judged_by(tmp_path, endpoint, model=str(smollm2()), maxTokens=16)
        judged = ask(asked, config, hurried(seconds=120))

    assert judged.counts.unanswered == 0, judged.warning
    replies = [json.loads(path.read_text())["reply"] for path in (tmp_path / "out" / "run-1" / FOLDER).iterdir()]
    assert len(replies) == 2
    assert all(len(reply.split()) > 2 for reply in replies)
