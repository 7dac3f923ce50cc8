"""The reconciler's effects: their order, what a crash between them leaves, and who may touch what."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.api.parse import format_time
from finetune_operator.api.status import Restarts
from finetune_operator.policy import waiting
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.feed import Feed
from finetune_operator.runtime.gateway import (
    ConflictError,
    DeniedError,
    NotLeadingError,
    RejectedError,
    TransientError,
)
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
        self.cache, self.queue, self.now = Cache(), WorkQueue(), NOW
        self.feed = Feed(self.cache, self.queue, forget=lambda uid: None)
        wiring = Wiring(progress_url=lambda job: "https://operator/x", progress_ca=lambda: "CA")
        self.reconciler = Reconciler(
            cache=self.cache, gateway=gateway, settings=SETTINGS, wiring=wiring,
            latest=lambda uid: None, clock=lambda: self.now,
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


@pytest.mark.parametrize(
    ("nodes", "stage"), [(1, "train"), (2, "prepare")], ids=["one pod", "several pods would wait for one"]
)
async def test_where_a_policy_takes_no_job_for_prepare_the_training_pod_prepares(gateway, nodes, stage) -> None:
    gateway.add("FineTuneJob", {**make_body(), "spec": make_spec(resources={"nodes": nodes})})
    operator = Operator(gateway)
    await operator.feed.relist(gateway)
    create = gateway.create_job

    async def needs_a_queue(manifest):
        if manifest["metadata"]["name"].endswith("-prep"):
            raise DeniedError("ValidatingAdmissionPolicy 'queues' denied request: every Job names a queue")
        return await create(manifest)

    gateway.create_job = needs_a_queue
    with pytest.raises(DeniedError):
        await operator.reconciler.reconcile(KEY)
    assert "every Job names a queue" in gateway.events[-1].message
    assert reason_of(gateway, "Prepared") == "JobRefused"
    gateway.create_job = create
    await operator.reconciler.reconcile(KEY)
    (job,) = gateway.objects["Job"].values()
    assert job["metadata"]["labels"]["finetuning.dev/stage"] == stage
    first = job["spec"]["template"]["spec"].get("initContainers", job["spec"]["template"]["spec"]["containers"])[0]
    assert first["name"] == "prepare"


async def test_a_jobs_own_labels_and_annotations_are_not_taken_for_ours(operator, gateway) -> None:
    await operator.reconciler.reconcile(KEY)
    (plain,) = gateway.objects.pop("Job").values()
    gateway.objects["Job"] = {}
    body = await _only(gateway)
    labels = {**plain["metadata"]["labels"], "finetuning.dev/attempt": "7", "finetuning.dev/job-uid": "uid-of-another"}
    annotations = {**plain["spec"]["template"]["metadata"]["annotations"], "finetuning.dev/config": "{}"}
    meta = {**body["metadata"], "labels": labels, "annotations": annotations}
    gateway.add("FineTuneJob", {"metadata": meta, "spec": body["spec"]})
    again = Operator(gateway)
    await again.feed.relist(gateway)
    await again.reconciler.reconcile(KEY)
    (job,) = gateway.objects["Job"].values()
    for each in (plain, job):
        each["metadata"] = {name: each["metadata"][name] for name in ("name", "labels", "ownerReferences")}
    assert job == plain


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


@pytest.mark.parametrize(
    ("restarts", "name"),
    [(False, "-r1-a2-prep"), (True, "-r1-a1-prep")],
    ids=["is another attempt", "and whose operator went with it, leaves no trace"],
)
async def test_a_job_deleted_before_the_status_says_that_it_is_there(operator, gateway, restarts, name) -> None:
    await operator.reconciler.reconcile(KEY)
    (job,) = gateway.objects["Job"].values()
    gateway.objects["Job"].clear()
    if restarts:
        operator = Operator(gateway)
        await operator.feed.relist(gateway)
    else:
        operator.feed.gone("Job", job["metadata"]["uid"])
    for _ in range(2):
        await operator.reconciler.reconcile(KEY)
        operator.now += timedelta(seconds=5)
    assert [made.endswith(name) for _, made in gateway.objects["Job"]] == [True]


async def test_jobs_that_are_gone_are_forgotten_with_their_finetunejob(operator, gateway) -> None:
    await operator.reconciler.reconcile(KEY)
    (job,) = gateway.objects["Job"].values()
    ours = operator.cache.job(KEY)
    operator.feed.gone("FineTuneJob", ours.uid)
    operator.feed.gone("Job", job["metadata"]["uid"])
    operator.cache.put_job(ours)
    assert operator.cache.snapshot(KEY, None).gone is None


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
                workers=1, resync_seconds=600, lead=lambda work: work())  # fmt: skip
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


async def _begun(operator: Operator, gateway: FakeGateway, *, looks: int = 2) -> dict[str, Any]:
    """Have the first Job created, and seen by a second look; return it."""
    for _ in range(looks):
        await operator.reconciler.reconcile(KEY)
    return next(iter(gateway.objects["Job"].values()))


@pytest.mark.parametrize(
    "owners",
    [
        pytest.param([], id="orphaned"),
        pytest.param(
            [{"kind": "FineTuneJob", "name": "x", "uid": "uid-of-another", "controller": True}],
            id="another-finetunejob",
        ),
        pytest.param(
            [{"kind": "CronJob", "name": "x", "uid": "uid-of-a-cronjob", "controller": True}], id="another-kind"
        ),
    ],
)
async def test_a_job_that_somebody_else_adopted_is_ours_no_more_and_never_touched(operator, gateway, owners) -> None:
    job = await _begun(operator, gateway)
    job["metadata"]["ownerReferences"] = owners
    operator.feed.seen("Job", gateway.add("Job", job))
    await operator.reconciler.reconcile(KEY)
    status = operator.cache.job(KEY).status
    assert (status.attempt, status.last_failure.reason, status.restarts.failures) == (2, "JobDeleted", 0)
    assert not any(call.startswith("delete") for call in gateway.calls)


async def test_a_pod_that_lost_its_label_is_seen_no_more(operator, gateway) -> None:
    job = await _begun(operator, gateway)
    labels = job["spec"]["template"]["metadata"]["labels"]
    owner = {"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"], "controller": True}
    meta = {"namespace": "team", "name": "pod", "labels": labels, "ownerReferences": [owner]}
    pod = {"metadata": meta, "status": {"phase": "Running"}}
    operator.feed.seen("Pod", gateway.add("Pod", pod))
    ours = operator.cache.job(KEY)
    assert len(operator.cache.pods_of(ours)) == 1
    pod["metadata"]["labels"] = {}
    operator.feed.seen("Pod", gateway.add("Pod", pod))
    assert operator.cache.pods_of(ours) == ()


async def test_a_job_whose_labels_were_changed_is_still_the_attempts(operator, gateway) -> None:
    job = await _begun(operator, gateway)
    job["metadata"]["labels"] = {**job["metadata"]["labels"], "finetuning.dev/attempt": "9"}
    operator.feed.seen("Job", gateway.add("Job", job))
    await operator.reconciler.reconcile(KEY)
    assert operator.cache.job(KEY).status.attempt == 1


async def test_what_claims_from_another_namespace_to_be_ours_is_not(operator, gateway) -> None:
    job = await _begun(operator, gateway)
    forged = copy.deepcopy(job)
    forged["metadata"] = {**forged["metadata"], "namespace": "rivals", "uid": "uid-of-the-forgery"}
    forged["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    operator.feed.seen("Job", gateway.add("Job", forged))
    owner = {"kind": "Job", "name": job["metadata"]["name"], "uid": "uid-of-the-forgery", "controller": True}
    meta = {"namespace": "rivals", "name": "pod", "ownerReferences": [owner]}
    meta["labels"] = job["spec"]["template"]["metadata"]["labels"]
    operator.feed.seen("Pod", gateway.add("Pod", {"metadata": meta, "status": {"phase": "Running"}}))
    view = operator.cache.snapshot(KEY, None)
    assert [child.namespace for child in view.children] == ["team"]
    assert view.pods == ()


async def test_another_job_under_the_name_of_one_that_is_to_end_stays(operator, gateway) -> None:
    job = await _begun(operator, gateway)
    body = await _only(gateway)
    body["spec"]["lifecycle"] = {"suspend": True}
    operator.feed.seen("FineTuneJob", gateway.add("FineTuneJob", body))
    gateway.add("Job", {**job, "metadata": {**job["metadata"], "uid": "uid-of-another"}})  # the watch is late
    await operator.reconciler.reconcile(KEY)
    assert f"delete {job['metadata']['name']}" in gateway.calls
    assert [body["metadata"]["uid"] for body in gateway.objects["Job"].values()] == ["uid-of-another"]


def _pod_of(job: dict[str, Any], **status: Any) -> dict[str, Any]:
    owner = {"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"], "controller": True}
    labels = job["spec"]["template"]["metadata"]["labels"]
    meta = {"namespace": "team", "name": "pod", "uid": "uid-of-the-pod", "labels": labels, "ownerReferences": [owner]}
    return {"metadata": meta, "status": status}


@pytest.mark.parametrize("is_seen", [pytest.param(True, id="seen-running"), pytest.param(False, id="never-seen")])
async def test_a_result_that_the_watch_of_pods_has_not_brought_yet_is_not_lost(operator, gateway, is_seen) -> None:
    job = await _begun(operator, gateway, looks=2 if is_seen else 1)
    running = gateway.add("Pod", _pod_of(job, phase="Running"))
    if is_seen:
        operator.feed.seen("Pod", running)
    ended = {"terminated": {"exitCode": 0, "message": prepared_message().encode()}}
    gateway.add("Pod", _pod_of(job, phase="Succeeded", containerStatuses=[{"name": "prepare", "state": ended}]))
    job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    operator.feed.seen("Job", gateway.add("Job", job))
    await operator.reconciler.reconcile(KEY)
    status = operator.cache.job(KEY).status
    assert (status.last_failure, status.dataset.train_examples) == (None, 90)


async def test_no_attempt_begins_while_a_pod_lives_that_the_watch_has_not_brought_yet(operator, gateway) -> None:
    job = await _begun(operator, gateway)
    pod = gateway.add("Pod", _pod_of(job, phase="Running"))
    gateway.objects["Job"].clear()
    operator.feed.gone("Job", job["metadata"]["uid"])
    for _ in range(3):
        await operator.reconciler.reconcile(KEY)
        operator.now += timedelta(seconds=30)
    assert (operator.cache.job(KEY).status.attempt, gateway.objects["Job"]) == (2, {})
    gateway.objects["Pod"].clear()
    operator.feed.gone("Pod", pod["metadata"]["uid"])
    await operator.reconciler.reconcile(KEY)
    assert [name.rsplit("-", 2)[1] for _, name in gateway.objects["Job"]] == ["a2"]


async def test_a_job_whose_pods_are_refused_says_so_once_it_should_have_some(operator, gateway) -> None:
    gateway.refuses_pods = "exceeded quota: gpus"
    await operator.reconciler.reconcile(KEY)
    (job,) = gateway.objects["Job"].values()
    job["metadata"]["creationTimestamp"] = format_time(NOW)
    gateway.add("Job", job)
    await operator.feed.relist(gateway)
    assert await operator.reconciler.reconcile(KEY) == waiting.PODLESS_SECONDS
    assert reason_of(gateway, "Prepared") == "PodPending"
    operator.now += timedelta(seconds=waiting.PODLESS_SECONDS)
    await operator.reconciler.reconcile(KEY)
    assert reason_of(gateway, "Prepared") == "PodsRefused"


async def test_a_volume_that_is_not_there_is_said_once_the_pod_should_have_it(operator, gateway) -> None:
    gateway.mounts_nothing = 'configmap "lexicon" not found'
    await operator.reconciler.reconcile(KEY)
    (job,) = gateway.objects["Job"].values()
    job["metadata"]["creationTimestamp"] = format_time(NOW)
    waiting_ = {"name": "prepare", "state": {"waiting": {"reason": "ContainerCreating"}}}
    gateway.add("Pod", _pod_of(job, phase="Pending", containerStatuses=[waiting_]))
    await operator.feed.relist(gateway)
    assert await operator.reconciler.reconcile(KEY) == waiting.CREATING_SECONDS
    assert reason_of(gateway, "Prepared") == "Starting"
    operator.now += timedelta(seconds=waiting.CREATING_SECONDS)
    assert await operator.reconciler.reconcile(KEY) == waiting.CREATING_SECONDS
    assert reason_of(gateway, "Prepared") == "MountFailed"
    assert gateway.events[-1].message == 'configmap "lexicon" not found'


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        pytest.param({"running": {}}, "Running", id="runs"),
        pytest.param({"waiting": {"reason": "ImagePullBackOff"}}, "Pending", id="tells another reason"),
    ],
)
async def test_events_are_not_asked_for_where_the_pod_tells(operator, gateway, state, phase) -> None:
    gateway.mounts_nothing = "nobody asks"
    await operator.reconciler.reconcile(KEY)
    (job,) = gateway.objects["Job"].values()
    job["metadata"]["creationTimestamp"] = format_time(NOW)
    gateway.add("Pod", _pod_of(job, phase=phase, containerStatuses=[{"name": "prepare", "state": state}]))
    await operator.feed.relist(gateway)
    operator.now += timedelta(seconds=60)
    await operator.reconciler.reconcile(KEY)
    assert reason_of(gateway, "Prepared") != "MountFailed"


async def test_what_a_decision_does_not_see_and_our_own_writes_are_no_news(operator, gateway) -> None:
    await operator.queue.get()
    operator.queue.done(KEY)
    await operator.reconciler.reconcile(KEY)
    (job,) = gateway.objects["Job"].values()
    operator.feed.seen("FineTuneJob", await _only(gateway))
    operator.feed.seen("Job", job)
    gateway.add("Job", {**job, "status": {"active": 1}})
    operator.feed.seen("Job", job)
    assert operator.queue.depth() == 0
    operator.feed.seen("Job", gateway.add("Job", {**job, "spec": {**job["spec"], "suspend": True}}))
    assert operator.queue.depth() == 1


async def test_what_admission_makes_of_a_new_job_is_seen(operator, gateway) -> None:
    await operator.reconciler.reconcile(KEY)
    (job,) = gateway.objects["Job"].values()
    # Kueue's webhook has suspended it: the answer to our own request does not say so.
    operator.feed.seen("Job", {**job, "spec": {**job["spec"], "suspend": True}})
    await operator.reconciler.reconcile(KEY)
    assert reason_of(gateway, "Prepared") == "Queued"


async def test_a_job_that_vanishes_before_it_was_written_down_waits_for_its_pods(operator, gateway) -> None:
    await operator.reconciler.reconcile(KEY)
    (job,) = gateway.objects["Job"].values()
    pod = gateway.add("Pod", _pod_of(job, phase="Running"))
    gateway.objects["Job"].clear()
    operator.feed.gone("Job", job["metadata"]["uid"])
    for _ in range(2):
        await operator.reconciler.reconcile(KEY)
        operator.now += timedelta(seconds=5)
    assert gateway.objects["Job"] == {}
    gateway.objects["Pod"].clear()
    operator.feed.gone("Pod", pod["metadata"]["uid"])
    await operator.reconciler.reconcile(KEY)
    assert len(gateway.objects["Job"]) == 1


def reason_of(gateway: FakeGateway, kind: str) -> str:
    (job,) = gateway.objects["FineTuneJob"].values()
    return next(item["reason"] for item in job["status"]["conditions"] if item["type"] == kind)


async def test_a_job_that_could_not_be_written_while_the_lease_was_late_is_looked_at_again(
    operator, gateway, monkeypatch
) -> None:
    monkeypatch.setattr("finetune_operator.runtime.loop._NOT_LEADING_RETRY", 0.01)
    gateway.fail_next = NotLeadingError("the renewal is late")
    loop = Loop(queue=operator.queue, reconciler=operator.reconciler, feed=operator.feed, gateway=gateway,
                workers=1, resync_seconds=600, lead=lambda work: work())  # fmt: skip
    task = asyncio.create_task(loop.run())
    await _until(lambda: bool(gateway.objects["Job"]))
    task.cancel()
