"""A new run of the same job, told as stories: when it begins, what it leaves alone, and what it starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_contract.exit_codes import ExitCode
from finetune_operator.policy.plan import ChildRequest
from tests.support.builders import (
    Story,
    ended_pod,
    failed_child,
    make_child,
    make_job,
    make_pod,
    make_spec,
    trained_message,
)

RERUN = {"onSpecChange": "Rerun"}
PREPARE_AGAIN = ChildRequest(stage="prepare", run=2, attempt=1)


def changes(story: Story, rerun: str | None = None, **spec: Any) -> None:
    """Have the user change the spec or the annotation."""
    job = story.job
    story.job = replace(job, spec={**job.spec, **spec}, rerun=rerun or job.rerun, generation=job.generation + 1)


def succeeded(**lifecycle: Any) -> Story:
    story = Story(make_spec(lifecycle=lifecycle))
    story.is_prepared()
    done = make_child("train", "complete")
    story.sees(done, pods=(ended_pod(done, exit_code=0, message=trained_message().encode()),))
    return story


def test_a_changed_spec_begins_a_run_that_knows_nothing_of_the_last_one() -> None:
    story = succeeded(**RERUN)
    changes(story, hyperparameters={"epochs": 1})
    plan = story.sees(make_child("train", "complete"))
    assert plan.create == PREPARE_AGAIN
    status = story.job.status
    assert (story.phase, status.run, status.attempt, status.outputs) == ("Preparing", 2, 1, None)
    assert [event.reason for event in plan.events if event.reason == "NewRun"] == ["NewRun"]
    assert story.condition("Ready")[0] == "False"


def test_what_still_works_for_the_last_run_is_deleted_and_its_pods_are_waited_for() -> None:
    story = Story(make_spec(lifecycle=RERUN))
    train = story.is_prepared()
    pod = make_pod(train)
    story.sees(train, pods=(pod,))
    changes(story, hyperparameters={"epochs": 1})

    plan = story.sees(train, pods=(pod,))
    assert (plan.delete, plan.create) == ((train.name,), None)
    assert story.sees(train, pods=(pod,)).delete == (train.name,)  # the deletion was lost
    ending = replace(train, deleting=True)
    assert story.sees(ending, pods=(pod,)).create is None
    assert story.sees().create == PREPARE_AGAIN


def test_the_same_spec_again_is_a_third_run() -> None:
    story = succeeded(**RERUN)
    spec = story.job.spec
    changes(story, hyperparameters={"epochs": 1})
    story.sees()
    story.job = make_job(spec, story.job.status, generation=3)
    story.sees()
    assert story.job.status.run == 3


@pytest.mark.parametrize(
    "spec",
    [
        {"lifecycle": {**RERUN, "suspend": False}},
        {"scheduling": {"priorityClass": "high", "queuePriority": "high"}},
        {},
    ],
    ids=["lifecycle", "priority", "nothing"],
)
def test_what_may_change_while_a_job_runs_begins_no_run(spec: dict[str, Any]) -> None:
    story = succeeded(**RERUN)
    changes(story, **spec)
    assert story.sees().create is None
    assert (story.phase, story.condition("Ready")[0]) == ("Succeeded", "True")
    assert story.job.status.observed_generation == story.job.generation


def test_where_changes_are_refused_none_begins_a_run() -> None:
    """Admission refuses them; a CRD of an older version may not have."""
    story = succeeded()
    changes(story, hyperparameters={"epochs": 1})
    assert story.sees().create is None


@pytest.mark.parametrize("how", ["succeeded", "failed"])
def test_the_annotation_asks_for_a_run_whatever_the_job_was(how: str) -> None:
    story = succeeded() if how == "succeeded" else Story()
    if how == "failed":
        story.sees()
        story.sees(failed_child("prepare", ExitCode.DATASET_INVALID))
    changes(story, rerun="monday")
    assert story.sees().create == PREPARE_AGAIN
    assert story.sees().create == PREPARE_AGAIN  # asked for once, and the creation was lost
    assert story.job.status.run == 2


def test_an_annotation_that_a_job_is_created_with_asks_for_nothing_more() -> None:
    story = Story()
    story.job = replace(story.job, rerun="monday")
    assert story.sees().create == ChildRequest(stage="prepare", run=1, attempt=1)
    story.job = replace(story.job, rerun="monday")
    story.sees()
    assert story.job.status.run == 1


def test_a_run_that_is_suspended_waits_with_its_successor() -> None:
    story = succeeded(**RERUN)
    changes(story, hyperparameters={"epochs": 1}, lifecycle={**RERUN, "suspend": True})
    assert story.sees().create is None
    assert story.phase == "Suspended"
    changes(story, lifecycle=RERUN)
    assert story.sees().create == PREPARE_AGAIN


def test_a_new_run_takes_the_profile_as_it_is_by_then() -> None:
    story = succeeded(**RERUN)
    changes(story, profile="gone")
    story.sees()
    assert story.condition("Validated") == ("False", "ProfileNotFound")
    assert story.condition("Stalled")[0] == "True"


def test_run_numbers_are_read_from_jobs_where_the_status_was_lost() -> None:
    story = Story()
    story.sees(make_child("train", "complete", run=4))
    assert story.job.status.run == 5
