"""Suspension, deadlines and clean-up, told as stories: what is seen, what time it is, and what is done."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_contract.exit_codes import ExitCode
from finetune_operator.api.status import Restarts
from finetune_operator.api.views import ChildJob, PodView
from finetune_operator.policy.plan import ChildRequest
from tests.support.builders import (
    NOW,
    Story,
    ended_pod,
    failed_child,
    make_child,
    make_job,
    make_pod,
    make_profile,
    make_report,
    make_spec,
    trained_message,
)


def with_lifecycle(**lifecycle: Any) -> Story:
    return Story(make_spec(lifecycle=lifecycle))


def says(story: Story, **lifecycle: Any) -> None:
    """Have the user change lifecycle."""
    story.job = make_job({**story.job.spec, "lifecycle": lifecycle}, story.job.status)


def training(story: Story, *, attempt: int = 1) -> tuple[ChildJob, PodView]:
    """Have an attempt work."""
    train = story.is_prepared() if attempt == 1 else make_child("train", attempt=attempt)
    pod = make_pod(train)
    story.sees(train, pods=(pod,))
    return train, pod


def ending(pod: PodView, story: Story) -> PodView:
    return replace(pod, deleted_at=story.now + timedelta(seconds=300))


# Suspension.


def test_a_suspended_attempt_ends_and_the_next_one_goes_on_without_charge() -> None:
    story = with_lifecycle()
    train, pod = training(story)

    says(story, suspend=True)
    assert story.sees(train, pods=(pod,)).delete == (train.name,)
    assert (story.phase, story.condition("Suspended")) == ("Suspending", ("False", "Suspending"))
    story.sees(replace(train, deleting=True), pods=(ending(pod, story),))
    assert story.phase == "Suspending"
    assert story.sees().create is None
    assert (story.phase, story.condition("Suspended")) == ("Suspended", ("True", "Suspended"))
    assert story.condition("Running") == ("False", "Suspended")
    assert (story.condition("Reconciling")[0], story.condition("Stalled")[0]) == ("True", "False")
    story.passes(3600)
    assert story.sees().status is None

    says(story, suspend=False)
    assert story.sees().create == ChildRequest(stage="train", run=1, attempt=2)
    assert story.condition("Suspended") == ("False", "Resumed")
    assert story.job.status.restarts is not None
    assert (story.job.status.restarts.failures, story.job.status.restarts.disruptions) == (0, 0)


def test_a_job_that_is_created_suspended_waits_and_then_begins() -> None:
    story = with_lifecycle(suspend=True)
    assert story.sees().create is None
    assert (story.phase, story.job.status.run, story.job.status.start_time) == ("Suspended", None, None)
    story.passes(60)
    says(story)
    assert story.sees().create == ChildRequest(stage="prepare", run=1, attempt=1)
    assert story.job.status.start_time == "2026-11-24T12:01:00Z"


def test_a_deletion_that_was_lost_is_repeated() -> None:
    story = with_lifecycle()
    train, pod = training(story)
    says(story, suspend=True)
    story.sees(train, pods=(pod,))
    assert story.sees(train, pods=(pod,)).delete == (train.name,)


def test_an_attempt_that_completes_before_it_is_told_counts() -> None:
    story = with_lifecycle()
    training(story)
    says(story, suspend=True)
    done = make_child("train", "complete")
    story.sees(done, pods=(ended_pod(done, exit_code=0, message=trained_message().encode()),))
    assert story.phase == "Succeeded"


def test_a_suspension_taken_back_while_the_attempt_ends_is_no_disruption() -> None:
    story = with_lifecycle()
    train, pod = training(story)
    says(story, suspend=True)
    story.sees(train, pods=(pod,))
    says(story, suspend=False)
    assert story.sees(replace(train, deleting=True), pods=(ending(pod, story),)).create is None
    assert story.sees().create == ChildRequest(stage="train", run=1, attempt=2)
    assert story.job.status.last_failure is None


def test_a_suspension_taken_back_before_anything_was_deleted_changes_nothing() -> None:
    story = with_lifecycle()
    train, pod = training(story)
    says(story, suspend=True)
    story.sees(train, pods=(pod,))
    says(story, suspend=False)
    plan = story.sees(train, pods=(pod,))
    assert (plan.delete, plan.create, story.phase) == ((), None, "Running")


def test_gpus_are_not_free_before_the_last_pod_is_gone_or_its_node_is_given_up() -> None:
    story = with_lifecycle()
    train, pod = training(story)
    says(story, suspend=True)
    story.sees(train, pods=(pod,))
    gone = ending(pod, story)
    plan = story.sees(pods=(gone,))
    assert (story.phase, plan.requeue_after) == ("Suspending", 360.0)
    story.passes(361)
    story.sees(pods=(gone,))
    assert story.phase == "Suspended"


# Deadlines.


def test_the_active_deadline_ends_the_job_and_its_attempt() -> None:
    story = with_lifecycle(activeDeadlineSeconds=600)
    train, pod = training(story)
    assert story.sees(train, pods=(pod,)).requeue_after == 600.0
    story.passes(600)
    plan = story.sees(train, pods=(pod,))
    assert plan.delete == (train.name,)
    assert story.condition("Failed") == ("True", "DeadlineExceeded")
    assert (story.condition("PodsReady")[0], story.condition("Running")[0]) == ("False", "False")
    last = story.job.status.last_failure
    assert last is not None
    assert (last.failure_class, last.reason, last.pod) == ("Deadline", "DeadlineExceeded", pod.name)
    assert (last.stage, last.attempt, last.time) == ("train", 1, "2026-11-24T12:10:00Z")
    assert "active for 10m" in last.message
    assert story.job.status.restarts == Restarts()
    assert story.sees(train, pods=(pod,)).delete == (train.name,)  # the deletion was lost
    assert story.sees(replace(train, deleting=True), pods=(pod,)).delete == ()


def test_a_run_that_is_complete_when_the_deadline_passes_has_succeeded() -> None:
    story = with_lifecycle(activeDeadlineSeconds=600)
    training(story)
    story.passes(700)
    done = make_child("train", "complete")
    story.sees(done, pods=(ended_pod(done, exit_code=0, message=trained_message().encode()),))
    assert story.phase == "Succeeded"


def test_time_in_suspension_does_not_count() -> None:
    story = with_lifecycle(activeDeadlineSeconds=104)
    story.sees()
    story.passes(100)
    says(story, suspend=True, activeDeadlineSeconds=104)
    story.sees()
    story.passes(6000)
    assert story.sees().status is None
    says(story, activeDeadlineSeconds=104)
    plan = story.sees()
    assert (plan.create is not None, plan.requeue_after) == (True, 4.0)


def test_the_start_deadline_is_for_jobs_whose_trainer_never_worked() -> None:
    story = with_lifecycle(startDeadlineSeconds=120)
    train = story.is_prepared()
    waiting = make_pod(train, "Pending", unschedulable="0/3 nodes have a free GPU")
    assert story.sees(train, pods=(waiting,)).requeue_after == 120.0
    story.passes(120)
    assert story.sees(train, pods=(waiting,)).delete == (train.name,)
    assert story.condition("Failed") == ("True", "StartDeadlineExceeded")
    last = story.job.status.last_failure
    assert last is not None
    assert (last.failure_class, last.reason, last.pod) == ("Deadline", "StartDeadlineExceeded", waiting.name)


def test_a_deadline_that_passes_before_a_retry_keeps_the_last_failures_words() -> None:
    story = with_lifecycle(activeDeadlineSeconds=5, retries={"backoffSeconds": 10})
    story.sees()
    story.sees(failed_child("prepare", ExitCode.STORAGE_UNAVAILABLE))
    story.passes(5)
    story.sees()
    last = story.job.status.last_failure
    assert last is not None
    assert (last.reason, last.attempt, last.pod) == ("DeadlineExceeded", 2, None)
    assert last.message.endswith(
        "Attempt 1 had failed: StorageUnavailable: Object storage could not be reached, after retries."
    )


def test_the_start_deadline_is_met_once_the_trainer_has_worked() -> None:
    story = with_lifecycle(startDeadlineSeconds=120)
    train, pod = training(story)
    assert story.sees(train, pods=(pod,)).requeue_after is None
    story.passes(3600)
    story.sees(failed_child("train", ExitCode.STORAGE_UNAVAILABLE))
    assert story.phase == "Restarting"


def test_an_attempt_without_a_step_ends_is_charged_and_the_next_goes_on() -> None:
    story = with_lifecycle(stallTimeoutSeconds=300)
    train, pod = training(story)
    story.passes(200)
    report = make_report(pod, received_at=story.now, step=7)
    assert story.sees(train, pods=(pod,), report=report).requeue_after == 300.0
    story.passes(299)
    same = make_report(pod, received_at=story.now, step=7)
    assert story.sees(train, pods=(pod,), report=same).delete == ()
    story.passes(1)
    plan = story.sees(train, pods=(pod,), report=same)
    assert plan.delete == (train.name,)
    last, restarts = story.job.status.last_failure, story.job.status.restarts
    assert last is not None
    assert restarts is not None
    assert (last.reason, restarts.failures, story.job.status.attempt) == ("StallTimeout", 1, 2)
    assert "no step after step 7 for 5m" in last.message
    assert last.pod == pod.name


def test_the_next_attempt_has_the_whole_time_again() -> None:
    story = with_lifecycle(stallTimeoutSeconds=300)
    train, pod = training(story)
    story.sees(train, pods=(pod,), report=make_report(pod, received_at=story.now, step=7))
    story.sees(failed_child("train", ExitCode.STORAGE_UNAVAILABLE))
    story.passes(1000)
    story.sees()
    train, pod = training(story, attempt=2)
    assert story.sees(train, pods=(pod,)).requeue_after == 300.0


# Clean-up.


def ended(**lifecycle: Any) -> Story:
    """A job whose prepare failed at NOW."""
    story = with_lifecycle(**lifecycle)
    story.sees()
    story.sees(failed_child("prepare", ExitCode.DATASET_INVALID))
    return story


def test_pods_and_jobs_go_when_their_time_has_come() -> None:
    story = ended(podTtlSecondsAfterFinished=60)
    child = make_child("prepare", "failed")
    assert story.sees(child).requeue_after == 60.0
    story.passes(60)
    plan = story.sees(child)
    assert (plan.delete, plan.delete_self, plan.requeue_after) == ((child.name,), False, None)
    assert story.sees().delete == ()


def test_the_job_goes_at_a_time_of_its_own() -> None:
    story = ended(podTtlSecondsAfterFinished=60, ttlSecondsAfterFinished=600)
    story.passes(60)
    assert story.sees().requeue_after == 540.0
    story.passes(540)
    assert story.sees().delete_self


def test_the_profile_may_say_how_long_things_stay() -> None:
    profile = make_profile(defaults={"lifecycle": {"ttlSecondsAfterFinished": 30}})
    story = Story(None, profile)
    story.sees()
    story.sees(failed_child("prepare", ExitCode.DATASET_INVALID))
    story.passes(30)
    assert story.sees().delete_self


@pytest.mark.parametrize("seconds", [0, 1_000_000])
def test_without_a_time_nothing_is_deleted(seconds: float) -> None:
    story = ended()
    story.passes(seconds)
    plan = story.sees(make_child("prepare", "failed"))
    assert (plan.delete, plan.delete_self, plan.requeue_after) == ((), False, None)


def test_a_clock_that_is_a_second_behind_waits_a_second_longer() -> None:
    story = ended(ttlSecondsAfterFinished=10)
    story.now = NOW - timedelta(seconds=1)
    assert story.sees().requeue_after == 11.0
