"""A job in Kueue's queue, told as stories: waiting, admitted, preempted, suspended, and what is never charged."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.api.parse import parse_child, parse_workload
from finetune_operator.api.views import ChildJob
from finetune_operator.policy.plan import ChildRequest
from tests.support.builders import (
    Story,
    ended_pod,
    failed_child,
    make_child,
    make_job,
    make_pod,
    make_report,
    make_spec,
    make_workload,
    trained_message,
)

QUEUED = {"scheduling": {"queue": "tuning"}}
ADMITTED: dict[str, Any] = {
    "reserved": True,
    "admitted": True,
    "reason": "QuotaReserved",
    "message": "Quota reserved in ClusterQueue team",
}


def waiting(story: Story, **changes: Any) -> ChildJob:
    """Have a prepared job's Job wait for quota."""
    child = replace(story.is_prepared(), suspended=True, **changes)
    story.sees(child, workload=make_workload(child))
    return child


def training(story: Story) -> ChildJob:
    """Have Kueue start it."""
    child = replace(waiting(story), suspended=False)
    story.sees(child, workload=make_workload(child, **ADMITTED), pods=(make_pod(child),))
    return child


def test_why_it_waits_is_in_kueues_own_words_and_since_when() -> None:
    story = Story(make_spec(**QUEUED))
    child = waiting(story)
    assert (story.phase, story.condition("QuotaReserved")) == ("Queued", ("False", "WaitingForQuota"))
    assert story.condition("Running") == ("False", "Queued")
    ready = next(item for item in story.job.status.conditions if item.type == "Ready")
    assert "insufficient unused quota for nvidia.com/gpu" in ready.message
    queue = story.job.status.queue
    assert queue is not None
    assert (queue.name, queue.workload) == ("tuning", f"job-{child.name}-abcde")
    assert queue.waiting_since == "2026-11-24T12:00:00Z"


def test_quota_ends_the_wait_which_is_counted_in_seconds() -> None:
    story = Story(make_spec(**QUEUED))
    child = waiting(story)
    story.passes(90)
    story.sees(child, workload=make_workload(child, **ADMITTED))
    assert (story.phase, story.condition("QuotaReserved")) == ("Queued", ("True", "QuotaReserved"))
    story.sees(replace(child, suspended=False), workload=make_workload(child, **ADMITTED), pods=(make_pod(child),))
    assert story.phase == "Running"
    queue = story.job.status.queue
    assert queue is not None
    assert (queue.waiting_since, queue.waited_seconds) == (None, 90)


def test_preemption_is_neither_failure_nor_attempt_and_the_same_job_goes_on() -> None:
    story = Story(make_spec(**QUEUED))
    child = training(story)
    evicted = make_workload(child, **{**ADMITTED, "evicted": "Preempted", "evicted_message": "for another workload"})
    ending = make_pod(child, deleted_at=story.now + timedelta(seconds=300))
    plan = story.sees(replace(child, suspended=True), workload=evicted, pods=(ending,))
    assert (plan.create, plan.delete) == (None, ())
    assert (story.phase, story.condition("QuotaReserved")) == ("Queued", ("False", "Preempted"))
    assert [(event.type, event.reason) for event in plan.events] == [("Warning", "Preempted")]
    requeued = replace(evicted, reserved=False, reason="WaitingForQuota", message="2 more needed")
    assert story.sees(replace(child, suspended=True), workload=requeued).create is None
    found = next(item for item in story.job.status.conditions if item.type == "QuotaReserved")
    assert (found.reason, found.message) == ("Preempted", "for another workload; 2 more needed")
    story.sees(child, workload=make_workload(child, **ADMITTED), pods=(make_pod(child, uid="pod-2"),))
    assert (story.phase, story.job.status.attempt, story.job.status.last_failure) == ("Running", 1, None)
    restarts = story.job.status.restarts
    assert restarts is not None
    assert (restarts.failures, restarts.disruptions) == (0, 0)


def test_pods_that_end_after_a_preemption_still_tell_their_last_checkpoint() -> None:
    story = Story(make_spec(**QUEUED))
    child = training(story)
    evicted = make_workload(child, **{**ADMITTED, "evicted": "Preempted"})
    pod = make_pod(child, deleted_at=story.now + timedelta(seconds=300))
    report = make_report(pod, checkpoint_step=5)
    story.sees(replace(child, suspended=True), workload=evicted, pods=(pod,), report=report)
    assert story.job.status.checkpoint is not None
    assert story.job.status.checkpoint.step == 5


@pytest.mark.parametrize(
    ("kueue", "reason"), [(False, "KueueNotServed"), (True, "WaitingForKueue")], ids=["no Kueue", "Kueue is away"]
)
def test_a_job_waits_for_a_kueue_that_says_nothing(kueue, reason) -> None:
    story = Story(make_spec(**QUEUED))
    story.kueue = kueue
    child = replace(story.is_prepared(), suspended=True)
    plan = story.sees(child)
    assert (story.phase, story.condition("QuotaReserved")) == ("Queued", ("False", reason))
    assert plan.delete == ()
    story.kueue = True
    story.sees(child, workload=make_workload(child))
    assert story.condition("QuotaReserved") == ("False", "WaitingForQuota")


def test_a_workload_that_kueue_has_not_evaluated_waits_behind_others() -> None:
    story = Story(make_spec(**QUEUED))
    child = replace(story.is_prepared(), suspended=True)
    story.sees(child, workload=make_workload(child, reason="", message=""))
    assert (story.phase, story.condition("QuotaReserved")) == ("Queued", ("False", "Queued"))
    ready = next(item for item in story.job.status.conditions if item.type == "Ready")
    assert "others come first" in ready.message


def test_quota_without_the_admission_checks_is_not_the_start() -> None:
    story = Story(make_spec(**QUEUED))
    child = waiting(story)
    checks = {**ADMITTED, "admitted": False, "checks": "The workload has not all checks ready"}
    story.sees(child, workload=make_workload(child, **checks))
    assert (story.phase, story.condition("QuotaReserved")[0]) == ("Queued", "True")
    running = next(item for item in story.job.status.conditions if item.type == "Running")
    assert running.message == "The workload has not all checks ready"


def test_prepare_does_not_queue_and_is_told_of_where_a_default_queue_takes_it() -> None:
    story = Story(make_spec(**QUEUED))
    plan = story.sees()
    assert plan.create == ChildRequest(stage="prepare", run=1, attempt=1)
    captured = make_child("prepare", suspended=True)
    story.sees(captured, workload=make_workload(captured, message="no quota for cpu"))
    assert (story.phase, story.condition("Prepared")) == ("Preparing", ("False", "Queued"))
    assert "QuotaReserved" not in {item.type for item in story.job.status.conditions}


def test_a_training_job_that_a_default_queue_takes_is_mirrored_too() -> None:
    story = Story()
    child = waiting(story)
    assert story.condition("QuotaReserved") == ("False", "WaitingForQuota")
    assert story.job.status.queue is not None
    assert (story.job.status.queue.name, child.suspended) == (None, True)


def test_a_job_in_no_queue_has_no_word_about_one() -> None:
    story = Story()
    train = story.is_prepared()
    story.sees(train, pods=(make_pod(train),))
    assert "QuotaReserved" not in {item.type for item in story.job.status.conditions}
    assert story.job.status.queue is None


def test_suspension_takes_a_waiting_job_out_of_the_queue_and_resuming_puts_the_next_attempt_in() -> None:
    story = Story(make_spec(**QUEUED))
    child = waiting(story)
    story.job = make_job({**story.job.spec, "lifecycle": {"suspend": True}}, story.job.status)
    assert story.sees(child, workload=make_workload(child)).delete == (child.name,)
    story.sees()
    assert (story.phase, story.condition("QuotaReserved")) == ("Suspended", ("False", "Suspended"))
    assert story.job.status.queue is not None
    assert story.job.status.queue.waiting_since is None
    story.job = make_job({**story.job.spec, "lifecycle": {}}, story.job.status)
    assert story.sees().create == ChildRequest(stage="train", run=1, attempt=2)


def test_a_failed_attempt_leaves_the_queue_and_a_finished_one_does_too() -> None:
    failed = Story(make_spec(**QUEUED))
    training(failed)
    failed.sees(failed_child("train", 50))
    assert failed.condition("QuotaReserved") == ("False", "PodFailed")
    done = Story(make_spec(**QUEUED))
    training(done)
    ended = make_child("train", "complete")
    done.sees(ended, pods=(ended_pod(ended, exit_code=0, message=trained_message().encode()),))
    assert (done.phase, done.condition("QuotaReserved")) == ("Succeeded", ("False", "Succeeded"))


# What a Job that waits is replaced for, since none is ever changed.


def test_another_priority_has_a_waiting_job_queue_anew_and_a_running_one_stay() -> None:
    story = Story(make_spec(**QUEUED))
    child = waiting(story)
    raised = {"scheduling": {"queue": "tuning", "queuePriority": "high"}}
    story.job = make_job(make_spec(**raised), story.job.status)
    plan = story.sees(child, workload=make_workload(child))
    assert (plan.delete, story.job.status.attempt, story.phase) == ((child.name,), 2, "Queued")
    assert story.condition("QuotaReserved") == ("False", "Requeued")
    assert story.sees().create == ChildRequest(stage="train", run=1, attempt=2)

    running = Story(make_spec(**QUEUED))
    child = training(running)
    pod = make_pod(child, deleted_at=running.now + timedelta(seconds=300))
    running.job = make_job(make_spec(**raised), running.job.status)
    plan = running.sees(child, workload=make_workload(child, **ADMITTED), pods=(make_pod(child),))
    assert (plan.delete, running.phase) == ((), "Running")
    evicted = make_workload(child, **{**ADMITTED, "evicted": "Preempted"})
    ending = running.sees(replace(child, suspended=True), workload=evicted, pods=(pod,))
    assert (ending.delete, running.condition("QuotaReserved")[1]) == ((), "Preempted")  # its checkpoint is not written
    assert running.sees(replace(child, suspended=True), workload=evicted).delete == (child.name,)


@pytest.mark.parametrize(
    ("resources", "asked"),
    [
        ({"nodes": 4, "minNodes": 1}, [2, 1]),
        ({"nodes": 4, "minNodes": 2}, [2]),
        ({"nodes": 4}, []),
        ({"nodes": 4, "minNodes": 3}, []),  # 16 examples over 3 nodes are no whole micro-batches
    ],
    ids=["down to one", "down to two", "not wanted", "batch not shared evenly"],
)
def test_a_job_without_quota_asks_for_fewer_nodes_every_five_minutes(resources, asked) -> None:
    story = Story(make_spec(resources=resources, **QUEUED))
    waiting(story)
    seen = []
    for _ in range(3):
        attempt = story.job.status.attempt or 1
        child = make_child("train", attempt=attempt, suspended=True)
        story.sees(child, workload=make_workload(child))
        story.passes(300)
        if story.sees(child, workload=make_workload(child)).delete:
            assert story.job.status.resolved is not None
            seen.append(story.job.status.resolved.nodes)
    assert seen == asked
    assert story.job.status.last_failure is None


@pytest.mark.parametrize(
    ("said", "asks"),
    [
        ({"reason": "", "message": ""}, True),
        ({"reason": "PendingEvaluation", "evicted": "Preempted"}, True),
        ({"reason": "Misconfigured"}, False),
        ({"reason": "Suspended"}, False),
    ],
    ids=["behind others", "preempted", "no such queue", "a queue on hold"],
)
def test_fewer_nodes_are_asked_for_only_where_that_may_help(said, asks) -> None:
    story = Story(make_spec(resources={"nodes": 2, "minNodes": 1}, **QUEUED))
    child = replace(story.is_prepared(), suspended=True)
    story.sees(child, workload=make_workload(child, **said))
    story.passes(300)
    assert bool(story.sees(child, workload=make_workload(child, **said)).delete) == asks


def test_what_kueue_writes_is_read_in_its_newest_form_and_the_job_by_its_suspend() -> None:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "x", "uid": "job-uid", "controller": True}
    conditions = [
        {"type": "QuotaReserved", "status": "False", "reason": "WaitingForQuota", "message": "none"},
        {
            "type": "Admitted",
            "status": "False",
            "reason": "NoReservation",
            "message": "The workload has no reservation",
        },
        {"type": "Evicted", "status": "True", "reason": "Preempted", "message": "for another"},
    ]
    body = {"metadata": {"namespace": "team", "name": "job-x-1", "uid": "u", "ownerReferences": [owner]},
            "status": {"conditions": conditions}}  # fmt: skip
    workload = parse_workload(body)
    assert workload is not None
    assert (workload.child_uid, workload.reserved, workload.reason) == ("job-uid", False, "WaitingForQuota")
    assert (workload.evicted, workload.checks) == ("Preempted", "The workload has no reservation")
    body["metadata"]["ownerReferences"] = [{**owner, "kind": "RayJob"}]
    assert parse_workload(body) is None
    ours = {"apiVersion": "finetuning.dev/v1alpha1", "kind": "FineTuneJob", "uid": "u", "name": "x", "controller": True}
    labels = {"kueue.x-k8s.io/priority-class": "high"}
    template = {"metadata": {"labels": {"finetuning.dev/stage": "train"}}}
    job = {"metadata": {"namespace": "team", "name": "x", "uid": "u", "labels": labels, "ownerReferences": [ours]},
           "spec": {"suspend": True, "template": template}}  # fmt: skip
    child = parse_child(job)
    assert child is not None
    assert (child.suspended, child.queue_priority) == (True, "high")
