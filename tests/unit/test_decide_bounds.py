"""What is bounded: disruptions though they cost nothing, what a pod can carry, and Events beside what is said again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetune_contract.exit_codes import ExitCode
from finetune_operator.api.status import Restarts
from finetune_operator.policy.retry import MAX_BACKOFF, MAX_DISRUPTIONS
from tests.support.builders import Story, failed_child, make_child, make_job, make_pod, make_profile, make_spec


def test_disruptions_are_free_but_not_for_ever() -> None:
    story = Story()
    train = story.is_prepared()
    story.sees(train, pods=(make_pod(train),))
    many = story.job.status.model_copy(update={"restarts": Restarts(failures=0, disruptions=MAX_DISRUPTIONS)})
    story.job = replace(story.job, status=many)
    story.sees(failed_child("train", ExitCode.PREEMPTED))
    assert story.condition("Failed") == ("True", "RestartBudgetExceeded")
    assert story.job.status.restarts == Restarts(failures=0, disruptions=MAX_DISRUPTIONS)


def test_a_job_that_is_disrupted_again_and_again_waits_longer_each_time() -> None:
    story = Story()
    story.is_prepared()
    waits = []
    for attempt in range(1, 13):
        train = make_child("train", attempt=attempt)
        story.sees(train, pods=(make_pod(train),))
        waits.append(story.sees(failed_child("train", ExitCode.PREEMPTED, attempt=attempt)).requeue_after or 0.0)
        story.passes(waits[-1])
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(waits) == MAX_BACKOFF


def test_a_spec_that_no_pod_could_carry_is_said_and_starts_none() -> None:
    story = Story(make_spec(evaluation={"samples": {"prompts": ["x" * 4000] * 16, "everySteps": 5}}))
    assert story.sees().create is None
    assert story.condition("Validated") == ("False", "ConfigTooLarge")


@pytest.mark.parametrize("marked", [(), ("one",), ("one", "two")])
def test_a_default_profile_is_one(marked) -> None:
    names = ("one", "two")
    profiles = [make_profile(name, default=name in marked, limits={"allowedImages": ["*"]}) for name in names]
    story = Story(None, *profiles)
    story.sees()
    reasons = {0: ("False", "ProfileRequired"), 1: ("True", "Valid"), 2: ("False", "SeveralDefaultProfiles")}
    assert story.condition("Validated") == reasons[len(marked)]


def test_what_nobody_changed_is_never_written_or_told_again() -> None:
    story = Story()
    train = story.is_prepared()
    story.sees(train, pods=(make_pod(train),))
    plans = [story.sees(train, pods=(make_pod(train),)) for _ in range(3)]
    assert [(plan.status, plan.events, plan.create, plan.delete) for plan in plans] == [(None, (), None, ())] * 3


def test_a_job_whose_status_was_wiped_goes_on_as_its_next_run() -> None:
    story = Story()
    train = story.is_prepared()
    story.job = replace(story.job, status=make_job().status)
    plan = story.sees(train, pods=(make_pod(train),))
    assert (story.job.status.run, plan.create, plan.delete) == (2, None, (train.name,))
