"""The reconciler's effects: their order, what a crash between them leaves, and who may touch what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from finetune_operator.api.status import Restarts
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.feed import Feed
from finetune_operator.runtime.gateway import ConflictError, RejectedError, TransientError
from finetune_operator.runtime.loop import Loop
from finetune_operator.runtime.queue import WorkQueue
from finetune_operator.runtime.reconciler import Reconciler, Wiring
from tests.support.builders import NOW, SETTINGS, make_spec, prepared_message
from tests.support.fake_gateway import FakeGateway

KEY = ("team", "bot")


def make_body(name: str = "bot") -> dict[str, Any]:
    return {
        "apiVersion": "finetuning.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"namespace": "team", "name": name, "generation": 1},
        "spec": make_spec(),
    }


class Operator:
    """Cache, queue and reconciler over a fake API."""

    def __init__(self, gateway: FakeGateway) -> None:
        self.cache, self.queue = Cache(), WorkQueue()
        self.feed = Feed(self.cache, self.queue, forget=lambda uid: None)
        wiring = Wiring(progress_url=lambda job: "https://operator/x", progress_ca=lambda: "CA")
        self.reconciler = Reconciler(
            cache=self.cache, gateway=gateway, settings=SETTINGS, wiring=wiring,
            latest=lambda uid: None, clock=lambda: NOW,
        )  # fmt: skip


@pytest.fixture
async def gateway() -> FakeGateway:
    fake = FakeGateway()
    fake.add("FineTuneJob", make_body())
    return fake


@pytest.fixture
async def operator(gateway: FakeGateway) -> Operator:
    operator = Operator(gateway)
    await operator.feed.relist(gateway)
    return operator


async def test_the_status_is_written_before_the_job_and_events_come_last(gateway) -> None:
    gateway.add("FineTuneJob", {**make_body(), "spec": make_spec(profile="pool")})
    operator = Operator(gateway)
    await operator.feed.relist(gateway)
    await operator.reconciler.reconcile(KEY)  # waits for its profile
    gateway.add("FineTuneProfile", {"metadata": {"name": "pool"}, "spec": {}})
    await operator.feed.relist(gateway)
    gateway.calls.clear()
    await operator.reconciler.reconcile(KEY)
    assert [call.split()[0] for call in gateway.calls] == ["status", "create", "event"]


async def test_nothing_is_written_when_nothing_changed(operator, gateway) -> None:
    await operator.reconciler.reconcile(KEY)
    await operator.reconciler.reconcile(KEY)  # the Job was seen now
    gateway.calls.clear()
    await operator.reconciler.reconcile(KEY)
    assert gateway.calls == []


async def test_an_operator_that_dies_between_status_and_job_creates_that_job_after_its_restart(
    operator, gateway
) -> None:
    gateway_create, gateway.create_job = gateway.create_job, _die
    with pytest.raises(SystemExit):
        await operator.reconciler.reconcile(KEY)
    gateway.create_job = gateway_create
    restarted = Operator(gateway)
    await restarted.feed.relist(gateway)
    await restarted.reconciler.reconcile(KEY)
    assert len(gateway.objects["Job"]) == 1
    assert next(iter(gateway.objects["Job"]))[1].endswith("-r1-a1-prep")


async def test_two_operators_at_once_make_one_job_and_one_of_them_stands_back(operator, gateway) -> None:
    other = Operator(gateway)
    await other.feed.relist(gateway)
    await operator.reconciler.reconcile(KEY)
    with pytest.raises(ConflictError):
        await other.reconciler.reconcile(KEY)
    assert len(gateway.objects["Job"]) == 1


async def test_a_job_of_that_name_that_is_somebody_elses_is_never_touched(operator, gateway) -> None:
    real_create = gateway.create_job

    async def taken(manifest):
        foreign = {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": []}}
        gateway.add("Job", foreign)
        return await real_create(manifest)

    gateway.create_job = taken
    with pytest.raises(RejectedError, match="is taken by a Job"):
        await operator.reconciler.reconcile(KEY)


async def test_a_job_that_the_api_server_refuses_is_said_once_and_tried_again(operator, gateway) -> None:
    async def over_quota(manifest):
        raise RejectedError("POST jobs: 403 exceeded quota: team, requested: count/jobs.batch=1")

    taken, gateway.create_job = gateway.create_job, over_quota
    for _ in range(2):
        with pytest.raises(RejectedError):
            await operator.reconciler.reconcile(KEY)
    status = operator.cache.job(KEY).status
    ready = next(item for item in status.conditions if item.type == "Ready")
    assert (ready.reason, "exceeded quota" in ready.message) == ("JobRefused", True)
    assert [event.reason for event in gateway.events] == ["JobRefused"]
    gateway.create_job = taken
    await operator.reconciler.reconcile(KEY)
    assert len(gateway.objects["Job"]) == 1


async def test_a_status_write_that_fails_creates_nothing(operator, gateway) -> None:
    gateway.fail_next = TransientError("503")
    with pytest.raises(TransientError):
        await operator.reconciler.reconcile(KEY)
    assert gateway.objects["Job"] == {}


async def test_a_job_that_is_gone_is_forgotten(operator, gateway) -> None:
    gateway.objects["FineTuneJob"].clear()
    await operator.reconciler.reconcile(KEY)
    assert operator.cache.job(KEY) is None


async def test_a_job_that_the_watch_has_not_brought_yet_is_not_taken_for_deleted(operator, gateway) -> None:
    await operator.reconciler.reconcile(KEY)
    await operator.reconciler.reconcile(KEY)
    for uid in operator.cache.children.uids():
        operator.cache.drop_child(uid)
    await operator.reconciler.reconcile(KEY)
    status = operator.cache.job(KEY).status
    assert (status.attempt, status.restarts) == (1, Restarts())


async def test_a_list_drops_what_was_deleted_while_the_watch_was_down(operator, gateway) -> None:
    gateway.objects["FineTuneJob"].clear()
    gateway.add("FineTuneJob", make_body("other"))
    await operator.feed.relist(gateway)
    assert operator.cache.job(KEY) is None
    assert operator.cache.job(("team", "other")) is not None


@pytest.mark.parametrize("kind", ["Workload", "Node"])
async def test_a_right_that_is_missing_for_what_only_some_jobs_need_stops_no_other(kind, gateway, monkeypatch) -> None:
    listed = gateway.list

    async def refused(asked):
        if asked == kind:
            raise RejectedError("403 forbidden")
        async for body in listed(asked):
            yield body

    monkeypatch.setattr(gateway, "list", refused)
    operator = Operator(gateway)
    await operator.feed.relist(gateway)
    await operator.reconciler.reconcile(KEY)
    assert len(gateway.objects["Job"]) == 1


async def test_an_older_event_never_replaces_what_is_newer(operator, gateway) -> None:
    stale = await _only(gateway)
    await operator.reconciler.reconcile(KEY)
    operator.feed.seen("FineTuneJob", stale)
    assert operator.cache.job(KEY).status.run == 1


async def test_an_object_that_cannot_be_read_is_left_out_and_the_rest_goes_on(operator, gateway, caplog) -> None:
    broken = make_body("broken")
    broken["status"] = {"attempt": "many"}
    gateway.add("FineTuneJob", broken)
    await operator.feed.relist(gateway)
    assert operator.cache.job(KEY) is not None
    assert "cannot read FineTuneJob team/broken" in caplog.text


async def test_service_and_pod_group_are_there_before_the_pods_that_look_for_them() -> None:
    gateway = FakeGateway()
    scheduling = {"schedulerName": "scheduler-plugins-scheduler"}
    gateway.add("FineTuneJob", {**make_body(), "spec": make_spec(resources={"nodes": 2}, scheduling=scheduling)})
    operator = Operator(gateway)
    await operator.feed.relist(gateway)
    await operator.reconciler.reconcile(KEY)
    await _prepare(gateway)
    await operator.feed.relist(gateway)
    gateway.calls.clear()
    await operator.reconciler.reconcile(KEY)
    train = next(name for _, name in gateway.objects["Job"] if not name.endswith("-prep"))
    done = [call for call in gateway.calls if call not in ("status", "event")]
    assert done == ["service bot-uid10", f"pod group {train} of 2", f"create {train}"]


async def test_a_workload_is_its_jobs_news(operator, gateway) -> None:
    await operator.reconciler.reconcile(KEY)
    (job,) = gateway.objects["Job"].values()
    owner = {"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"], "controller": True}
    meta = {"namespace": "team", "name": "w", "ownerReferences": [owner]}
    body = gateway.add("Workload", {"metadata": meta, "status": {}})
    operator.feed.seen("Workload", body)
    view = operator.cache.snapshot(KEY, None)
    assert [item.name for item in view.workloads] == ["w"]
    operator.feed.gone("Workload", body["metadata"]["uid"])
    assert operator.cache.snapshot(KEY, None).workloads == ()


async def test_a_kueue_that_comes_later_is_noticed_and_followed(gateway, monkeypatch) -> None:
    monkeypatch.setattr("finetune_operator.runtime.loop._KUEUE_AGAIN", 0.01)
    status = {"run": 1, "attempt": 1, "queue": {"name": "tuning", "waitedSeconds": 0}}
    gateway.add("FineTuneJob", {**make_body(), "status": status})
    operator = Operator(gateway)
    asked: list[object] = []
    operator.queue.add = asked.append
    loop = Loop(queue=operator.queue, reconciler=operator.reconciler, feed=operator.feed, gateway=gateway,
                workers=1, resync_seconds=600)  # fmt: skip
    task = asyncio.create_task(loop.run())
    await _until(lambda: bool(asked))  # the first LIST
    asked.clear()
    gateway.kueue = True
    owner = {"kind": "Job", "name": "x", "uid": "x", "controller": True}
    gateway.add("Workload", {"metadata": {"namespace": "team", "name": "w", "ownerReferences": [owner]}})
    await _until(lambda: bool(list(operator.cache.workloads)))
    task.cancel()
    assert (operator.cache.kueue, asked) == (True, [KEY])


async def _until(holds: Callable[[], bool]) -> None:
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


async def _prepare(gateway: FakeGateway) -> None:
    """Have the prepare Job end well."""
    (job,) = gateway.objects["Job"].values()
    job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    gateway.add("Job", job)
    end = {"exitCode": 0, "reason": "Completed", "message": prepared_message().encode()}
    owner = {"kind": "Job", "name": job["metadata"]["name"], "controller": True}
    meta = {"namespace": "team", "name": "pod", "labels": job["metadata"]["labels"], "ownerReferences": [owner]}
    status = {"phase": "Succeeded", "containerStatuses": [{"name": "prepare", "state": {"terminated": end}}]}
    gateway.add("Pod", {"metadata": meta, "status": status})


async def _only(gateway: FakeGateway) -> dict[str, Any]:
    return await anext(gateway.list("FineTuneJob"))


async def _die(manifest: dict[str, Any]) -> dict[str, Any]:
    raise SystemExit(1)
