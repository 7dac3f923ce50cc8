"""What the client makes of answers: each is an object, nothing, or one of three errors, whoever gave it."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import patch

import pytest
from aiohttp import web
from kubernetes.aio import client

from finetune_operator.kube.client import KubeClient
from finetune_operator.runtime.gateway import ConflictError, DeniedError, RejectedError, TransientError


@asynccontextmanager
async def answered(**response: object) -> AsyncIterator[KubeClient]:
    """A client whose server gives one answer to everything."""

    async def handle(_request: web.Request) -> web.Response:
        return web.Response(**response)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        async with KubeClient(client.ApiClient(configuration)) as api:
            yield api
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("response", "error"),
    [
        pytest.param({"status": 409}, ConflictError, id="conflict"),
        pytest.param({"status": 403, "text": "no"}, RejectedError, id="forbidden"),
        pytest.param({"status": 422, "text": "{}"}, RejectedError, id="invalid"),
        pytest.param({"status": 410, "text": "[]"}, RejectedError, id="gone"),
        pytest.param({"status": 401}, TransientError, id="a token that was just rotated"),
        pytest.param({"status": 429}, TransientError, id="too many"),
        pytest.param({"status": 500, "body": b"\xff\xfe"}, TransientError, id="an error in no language"),
        pytest.param({"status": 200, "text": "<html>sign in</html>"}, TransientError, id="a page instead of an object"),
        pytest.param({"status": 200, "body": gzip.compress(b"{}")}, TransientError, id="bytes instead of an object"),
    ],
)
async def test_an_answer_is_an_error_of_ours(response: dict[str, object], error: type[Exception]) -> None:
    async with answered(**response) as api:
        with pytest.raises(error):
            await api.get("/apis/x")


@pytest.mark.parametrize(
    ("message", "denied"),
    [
        ("jobs \"a\" is forbidden: ValidatingAdmissionPolicy 'q' with binding 'q' denied request: a queue", True),
        ('admission webhook "jobs.example.com" denied the request: a queue', True),
        ('jobs.batch "a" is forbidden: exceeded quota: team, requested: count/jobs.batch=1', False),
        ('jobs.batch is forbidden: User "x" cannot create resource "jobs"', False),
    ],
    ids=["policy", "webhook", "quota", "right"],
)
async def test_what_no_time_mends_is_told_from_what_may_go_later(message: str, denied: bool) -> None:
    async with answered(status=403, text=json.dumps({"message": message})) as api:
        with pytest.raises(RejectedError) as refused:
            await api.post("/apis/x", {})
    assert isinstance(refused.value, DeniedError) == denied


async def test_nothing_there_is_nothing_and_no_server_is_an_error() -> None:
    async with answered(status=404) as api:
        assert await api.get("/apis/x") is None
        with pytest.raises(RejectedError):
            await api.post("/apis/x", {})
    gone = KubeClient(client.ApiClient(client.Configuration(host="http://127.0.0.1:1")))
    async with gone:
        with pytest.raises(TransientError):
            await gone.get("/apis/x")


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0), ("-3", 0.0)])
async def test_how_long_the_server_wants_to_be_left_alone(header: str, seconds: float) -> None:
    async with answered(status=429, headers={"Retry-After": header}) as api:
        with pytest.raises(TransientError) as refused:
            await api.get("/apis/x")
    assert refused.value.retry_after == seconds


async def test_whoever_writes_an_object_gets_its_metadata_alone() -> None:
    meta = {"uid": "u", "resourceVersion": "7"}
    async with answered(text=json.dumps({"metadata": meta, "spec": {}})) as api:
        assert (await api.create("/apis/x", {}), await api.merge("/apis/x", {})) == (meta, meta)
    async with answered(text='{"kind": "Status"}') as api:
        with pytest.raises(TransientError, match="no object"):
            await api.create("/apis/x", {})


async def test_no_thread_is_started_for_a_request() -> None:
    async with answered(text="{}") as api:
        await api.get("/apis/x")
        with patch.object(asyncio.get_running_loop(), "run_in_executor", side_effect=AssertionError) as started:
            await api.get("/apis/x")
    started.assert_not_called()
