"""The status server as pods meet it: real TLS on loopback, a reviewer with a table of tokens behind it."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from finetune_contract.progress import MAX_BODY_BYTES
from finetune_operator.api.report import ProgressReport
from finetune_operator.progress.identity import TokenIdentity
from finetune_operator.progress.limits import Rate
from finetune_operator.progress.ports import JobHandle
from finetune_operator.settings import parse_bind
from tests.support.progress import KnownJobs, Served, TableReviewer, make_identity, served

NOW = datetime(2026, 5, 1, tzinfo=UTC)
POST = {"trainerStatus": {"progressPercentage": 40, "metrics": [{"name": "loss", "value": "0.5"}]}}


def known_job(**changes: Any) -> KnownJobs:
    handle = {"uid": "uid-1", "pods": frozenset({"pod-1"}), "attempt": 1, **changes}
    return KnownJobs({("team", "tune"): JobHandle(**handle)})


def known_tokens() -> TableReviewer:
    return TableReviewer(
        {
            "good": make_identity(),
            "other-job": make_identity(job_uid="uid-2"),
            "other-namespace": make_identity(namespace="rivals"),
            "older-attempt": make_identity(pod_uid="pod-0", pod_name="tune-old"),
            "no-pod": make_identity(pod_uid=None, pod_name=None),
        }
    )


@pytest.fixture
async def run() -> AsyncIterator[Served]:
    options: dict[str, Any] = {"posts": Rate(1000, 1000), "clock": lambda: NOW}
    async with served(jobs=known_job(), reviewer=known_tokens(), **options) as running:
        yield running


def latest(run: Served) -> ProgressReport | None:
    jobs = vars(run.endpoint)["_jobs"]
    assert isinstance(jobs, KnownJobs)
    return jobs.store.latest("uid-1")


def status(**fields: Any) -> dict[str, Any]:
    return {"trainerStatus": fields}


async def test_a_post_is_taken(run: Served) -> None:
    code, body, _ = await run.post(POST)
    assert (code, body) == (200, {})
    assert latest(run) == ProgressReport(received_at=NOW, pod_uid="pod-1", attempt=1, percent=40, loss=0.5)


async def test_each_post_replaces_the_one_before(run: Served) -> None:
    await run.post(POST)
    await run.post(status(progressPercentage=41))
    assert latest(run) == ProgressReport(received_at=NOW, pod_uid="pod-1", attempt=1, percent=41)


@pytest.mark.parametrize(
    "empty",
    [{}, {"trainerStatus": None}, {"trainerStatus": {}}, status(lastUpdatedTime="2026-05-01T00:00:00Z")],
    ids=json.dumps,
)
async def test_an_empty_post_keeps_the_one_before(run: Served, empty: Any) -> None:
    await run.post(POST)
    code, body, _ = await run.post(empty)
    assert (code, body) == (200, {})
    report = latest(run)
    assert report
    assert report.percent == 40


@pytest.mark.parametrize("value", ["nan", "NaN", "Infinity", "-inf"])
async def test_numbers_that_are_none_are_dropped_and_the_rest_is_taken(run: Served, value: str) -> None:
    metrics = [{"name": "loss", "value": value}, {"name": "step", "value": "7"}]
    assert (await run.post(status(progressPercentage=1, metrics=metrics)))[0] == 200
    report = latest(run)
    assert report
    assert (report.loss, report.step) == (None, 7)


@pytest.mark.parametrize(
    ("token", "code", "reason", "message"),
    [
        pytest.param(None, 401, "Unauthorized", "no bearer token", id="none"),
        pytest.param("forged", 401, "Unauthorized", "not valid here", id="unknown-or-expired"),
        pytest.param("other-job", 401, "Unauthorized", "audience finetuning.dev/uid-1", id="another-jobs"),
        pytest.param("other-namespace", 403, "Forbidden", "namespace 'rivals'", id="another-namespaces"),
        pytest.param("older-attempt", 403, "Forbidden", "pod 'tune-old' is no live pod", id="older-attempts"),
        pytest.param("no-pod", 403, "Forbidden", "bound to no pod", id="bound-to-no-pod"),
    ],
)
async def test_whose_token_is_refused(run: Served, token: str | None, code: int, reason: str, message: str) -> None:
    got, body, headers = await run.post(POST, token=token)
    assert (got, body["code"], body["reason"], body["kind"], body["status"]) == (
        code,
        code,
        reason,
        "Status",
        "Failure",
    )
    assert message in body["message"]
    assert ("WWW-Authenticate" in headers) is (code == 401)
    assert latest(run) is None


@pytest.mark.parametrize("scheme", ["Basic good", "good", "Bearer", "Bearer   "])
async def test_only_bearer_tokens_count(run: Served, scheme: str) -> None:
    assert (await run.post(POST, headers={"Authorization": scheme}))[0] == 401


async def test_the_scheme_has_no_case(run: Served) -> None:
    assert (await run.post(POST, headers={"Authorization": "bearer good"}))[0] == 200


@pytest.mark.parametrize(("namespace", "name"), [("team", "other"), ("rivals", "tune")])
async def test_an_unknown_job(run: Served, namespace: str, name: str) -> None:
    code, body, _ = await run.post(POST, namespace=namespace, name=name)
    assert (code, body["reason"]) == (404, "NotFound")
    assert body["message"] == f"no finetunejob {name!r} in namespace {namespace!r}"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param(status(progressPercentage=101), "trainerStatus.progressPercentage", id="percent-over-100"),
        pytest.param(status(progressPercentage=-1), "trainerStatus.progressPercentage", id="percent-below-0"),
        pytest.param(status(progressPercentage="much"), "trainerStatus.progressPercentage", id="percent-a-word"),
        pytest.param(b'{"trainerStatus": {"progressPercentage": NaN}}', "trainerStatus.progressPercentage", id="nan"),
        pytest.param(status(estimatedRemainingSeconds=-5), "trainerStatus.estimatedRemainingSeconds", id="eta"),
        pytest.param(status(metrics=[{"name": "loss"}]), "trainerStatus.metrics.0.value", id="metric-no-value"),
        pytest.param(status(metrics=[{"name": "a", "value": 1}]), "trainerStatus.metrics.0.value", id="metric-number"),
        pytest.param(status(metrics=[{"name": "a", "value": "1"}] * 257), "trainerStatus.metrics", id="too-many"),
        pytest.param(status(lastUpdatedTime="today"), "trainerStatus.lastUpdatedTime", id="time"),
        pytest.param({"trainerStatus": 7}, "trainerStatus", id="no-object"),
        pytest.param([], "body", id="a-list"),
        pytest.param(b"", "body", id="no-body"),
        pytest.param(b'{"trainerStatus"', "body", id="cut-json"),
        pytest.param(b"\xff\xfe", "body", id="no-utf8"),
        pytest.param(b"[" * 60000, "body", id="nested-deep"),
    ],
)
async def test_an_invalid_post_names_its_field(run: Served, body: Any, field: str) -> None:
    code, answer, _ = await run.post(body)
    assert (code, answer["reason"]) == (422, "Invalid")
    assert field in [cause["field"] for cause in answer["details"]["causes"]]
    assert field in answer["message"]
    assert latest(run) is None


async def test_fields_that_we_do_not_know_are_ignored(run: Served) -> None:
    assert (await run.post({**status(progressPercentage=3, color="red"), "version": 2}))[0] == 200


async def chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 1024):
        yield b" " * 1024


async def test_a_body_of_64_kib_is_read_and_one_more_byte_refused(run: Served) -> None:
    text = json.dumps(POST).encode()
    assert (await run.post(text.ljust(MAX_BODY_BYTES)))[0] == 200
    code, body, _ = await run.post(text.ljust(MAX_BODY_BYTES + 1))
    assert (code, body["reason"]) == (413, "RequestEntityTooLarge")


async def test_a_body_of_unknown_length_is_refused_as_well(run: Served) -> None:
    url, headers = run.url(), {"Authorization": "Bearer good"}
    async with run.session.post(url, data=chunks(MAX_BODY_BYTES + 4096), headers=headers) as response:
        assert response.status == 413
        assert (await response.json())["kind"] == "Status"


async def test_size_comes_before_everything(run: Served) -> None:
    assert (await run.post(b" " * (MAX_BODY_BYTES + 1), token=None, name="other"))[0] == 413


async def test_a_body_that_says_it_is_too_large_is_not_waited_for(run: Served) -> None:
    assert b" 413 " in await raw(run, head(run, f"Content-Length: {MAX_BODY_BYTES + 1}"))


@pytest.mark.parametrize(("method", "code"), [("GET", 405), ("PUT", 405), ("DELETE", 405)])
async def test_other_methods_are_refused_with_a_status(run: Served, method: str, code: int) -> None:
    async with run.session.request(method, run.url()) as response:
        assert (response.status, (await response.json())["reason"]) == (code, "MethodNotAllowed")


async def test_other_paths_are_refused_with_a_status(run: Served) -> None:
    async with run.session.get(f"https://127.0.0.1:{run.server.port}/healthz") as response:
        assert (response.status, (await response.json())["kind"]) == (404, "Status")


async def test_the_rate_is_limited_before_any_review() -> None:
    reviewer = known_tokens()
    async with served(jobs=known_job(), reviewer=reviewer, posts=Rate(0.01, 2)) as run:
        answers = [await run.post(POST, token="forged") for _ in range(4)]
        assert [code for code, _, _ in answers] == [401, 401, 429, 429]
        assert int(answers[-1][2]["Retry-After"]) in range(1, 101)
        assert len(reviewer.asked) == 1
        assert (await run.post(POST, token="good"))[0] == 200


async def test_made_up_tokens_do_not_buy_reviews() -> None:
    reviewer = known_tokens()
    async with served(jobs=known_job(), reviewer=reviewer, reviews=Rate(0.01, 3)) as run:
        await run.post(POST)
        codes = [(await run.post(POST, token=f"forged-{number}"))[0] for number in range(5)]
        assert codes == [401, 401, 429, 429, 429]
        assert len(reviewer.asked) == 3
        # Who is known already is not kept out by it.
        assert (await run.post(POST))[0] == 200


async def test_a_review_is_asked_once_for_many_posts(run: Served) -> None:
    for _ in range(5):
        await run.post(POST)
    reviewer = vars(vars(run.endpoint)["_reviews"])["_reviewer"]
    assert reviewer.asked == [("good", "finetuning.dev/uid-1")]


async def test_nothing_dear_happens_for_an_unknown_job(run: Served) -> None:
    await run.post(POST, name="other")
    assert vars(vars(run.endpoint)["_reviews"])["_reviewer"].asked == []


async def test_late_posts_are_refused_although_their_token_is_remembered() -> None:
    jobs = known_job()
    async with served(jobs=jobs, reviewer=known_tokens()) as run:
        assert (await run.post(POST))[0] == 200
        jobs.jobs["team", "tune"] = JobHandle(uid="uid-1", pods=frozenset({"pod-2"}), attempt=2)
        assert (await run.post(status(progressPercentage=99)))[0] == 403
        report = jobs.store.latest("uid-1")
        assert report
        assert report.percent == 40


class ChangingReviewer(TableReviewer):
    """While the API server is asked, the job becomes another one."""

    def __init__(self, jobs: KnownJobs, *, then: JobHandle | None) -> None:
        super().__init__({"good": make_identity()})
        self._jobs, self._then = jobs, then

    async def review_token(self, token: str, *, audience: str) -> TokenIdentity | None:
        if self._then:
            self._jobs.jobs["team", "tune"] = self._then
        else:
            self._jobs.jobs.clear()
        return await super().review_token(token, audience=audience)


@pytest.mark.parametrize(
    ("then", "code"),
    [
        pytest.param(None, 404, id="deleted"),
        pytest.param(JobHandle(uid="uid-9", pods=frozenset({"pod-1"})), 403, id="made-anew"),
        pytest.param(JobHandle(uid="uid-1", pods=frozenset()), 403, id="attempt-over"),
    ],
)
async def test_what_changes_during_a_review_counts(then: JobHandle | None, code: int) -> None:
    jobs = known_job()
    async with served(jobs=jobs, reviewer=ChangingReviewer(jobs, then=then)) as run:
        assert (await run.post(POST))[0] == code
        assert jobs.store.latest("uid-1") is None


async def test_the_standby_sends_posts_away() -> None:
    async with served(jobs=known_job(), reviewer=known_tokens(), leading=lambda: False) as run:
        code, body, headers = await run.post(POST)
        assert (code, body["reason"], headers["Retry-After"]) == (503, "ServiceUnavailable", "2")


async def test_an_api_server_that_is_away_is_no_fault_of_the_pod(caplog: pytest.LogCaptureFixture) -> None:
    reviewer = known_tokens()
    reviewer.error = OSError("connection refused, request was good")
    async with served(jobs=known_job(), reviewer=reviewer) as run:
        assert (await run.post(POST))[0] == 503
        reviewer.error = None
        assert (await run.post(POST))[0] == 200
    assert "TokenReview failed (OSError)" in caplog.text
    assert "request was good" not in caplog.text


class BrokenJobs(KnownJobs):
    """A bug."""

    def find(self, namespace: str, name: str) -> JobHandle | None:
        return self.jobs[namespace, name]


async def test_a_bug_is_a_500_with_a_status_and_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async with served(jobs=BrokenJobs(), reviewer=known_tokens()) as run:
        code, body, _ = await run.post(POST)
        assert (code, body["reason"]) == (500, "InternalError")
    assert "KeyError" in caplog.text


async def test_answers_are_counted_and_tokens_never_logged(run: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for token in ("good", "secret-forged-token", None):
        await run.post(POST, token=token)
    assert run.endpoint.counts == {200: 1, 401: 2}
    assert "/namespaces/team/finetunejobs/tune/status' from 127.0.0.1: 200, taken" in caplog.text
    assert "secret-forged-token" not in caplog.text
    assert "Bearer good" not in caplog.text


async def raw(run: Served, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send bytes as they are and return the answer's first line."""
    trust = ssl.create_default_context(cadata=run.tls.ca_pem)
    reader, writer = await asyncio.open_connection("127.0.0.1", run.server.port, ssl=trust)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        return await asyncio.wait_for(reader.readline(), timeout=5)
    finally:
        writer.close()
        await writer.wait_closed()


def head(run: Served, *lines: str) -> bytes:
    path = run.url().split(str(run.server.port))[1]
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", "Authorization: Bearer good", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("line", "body"),
    [
        pytest.param("Content-Length: 100", b"{", id="rest-missing"),
        pytest.param("Transfer-Encoding: chunked", b"2\r\n{}\r\n", id="last-chunk-missing"),
        pytest.param("Transfer-Encoding: chunked", b"zz\r\n{}\r\n", id="broken-chunk"),
    ],
)
async def test_a_body_that_does_not_come_is_given_up(
    run: Served, monkeypatch: pytest.MonkeyPatch, line: str, body: bytes
) -> None:
    monkeypatch.setattr("finetune_operator.progress.endpoint._READ_SECONDS", 0.1)
    assert b" 408 " in await raw(run, head(run, line), body, pause=0.02)


async def test_a_body_that_cannot_be_decompressed_is_a_bad_request(run: Served) -> None:
    lines = ("Content-Encoding: deflate", "Content-Length: 7")
    assert b" 400 " in await raw(run, head(run, *lines), b"garbage", pause=0.02)


async def test_a_compressed_body_counts_as_large_as_it_is(run: Served) -> None:
    import zlib

    bomb = zlib.compress(b" " * 20_000_000)
    assert len(bomb) < MAX_BODY_BYTES
    headers = {"Authorization": "Bearer good", "Content-Encoding": "deflate"}
    async with run.session.post(run.url(), data=bomb, headers=headers) as response:
        assert response.status == 413


async def test_a_pod_that_hangs_up_leaves_no_traceback(run: Served, caplog: pytest.LogCaptureFixture) -> None:
    trust = ssl.create_default_context(cadata=run.tls.ca_pem)
    _, writer = await asyncio.open_connection("127.0.0.1", run.server.port, ssl=trust)
    writer.write(head(run, "Content-Length: 100") + b"{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await run.post(POST))[0] == 200
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("bind", "parts"),
    [("192.0.2.7:8443", ("192.0.2.7", 8443)), ("[::]:8443", ("::", 8443)), ("127.0.0.1:0", ("127.0.0.1", 0))],
)
def test_bind(bind: str, parts: tuple[str, int]) -> None:
    assert parse_bind(bind, variable="FINETUNE_STATUS_BIND") == parts


@pytest.mark.parametrize("bind", ["8443", ":8443", "192.0.2.7", "192.0.2.7:http", ""])
def test_a_bind_that_is_none_names_the_variable(bind: str) -> None:
    with pytest.raises(ValueError, match="FINETUNE_STATUS_BIND"):
        parse_bind(bind, variable="FINETUNE_STATUS_BIND")
