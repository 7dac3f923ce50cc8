"""A new run of the same job, told as stories: when it begins, what it leaves alone, and what it starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_contract.exit_codes import ExitCode
from finetune_operator.api.hashing import config_hash
from finetune_operator.api.views import ContainerView
from finetune_operator.policy.plan import ChildRequest
from tests.support.builders import (
    Story,
    ended_pod,
    failed_child,
    make_child,
    make_job,
    make_pod,
    make_profile,
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


# An earlier job's results (output.ifExists: Adopt).


def adopted_message(**changes: Any) -> str:
    """Return what prepare says that has found results in run-3 of the same prefix."""
    said = trained_message()
    assert said.trained is not None
    result = said.trained.model_copy(update={"adopted_run": 3})
    return said.model_copy(update={"stage": "prepare", "trained": result, **changes}).encode()


def test_adopted_results_complete_the_job_without_a_training_pod() -> None:
    story = Story()
    story.sees()
    done = make_child("prepare", "complete")
    plan = story.sees(done, pods=(ended_pod(done, exit_code=0, message=adopted_message()),))
    assert (plan.create, story.phase) == (None, "Succeeded")
    assert story.condition("OutputsReady") == story.condition("Prepared") == ("True", "Adopted")
    assert [event.reason for event in plan.events] == ["Adopted", "Succeeded"]
    outputs = story.job.status.outputs
    assert outputs is not None
    assert outputs.uri == "s3://models/out/run-3"


def test_the_run_after_adopted_results_has_a_folder_that_no_run_before_had() -> None:
    story = Story()
    story.sees()
    done = make_child("prepare", "complete")
    story.sees(done, pods=(ended_pod(done, exit_code=0, message=adopted_message()),))
    story.job = replace(story.job, rerun="again")
    plan = story.sees(done)
    assert plan.create == ChildRequest(stage="prepare", run=4, attempt=1)


def test_results_outside_a_gate_are_adopted_with_their_verdict() -> None:
    story = Story()
    story.sees()
    failed = failed_child("prepare", ExitCode.GATE_FAILED)
    said = adopted_message(exit_code=24, reason="GateFailed", message="exactMatch is 0.1")
    story.sees(failed, pods=(ended_pod(failed, exit_code=24, message=said),))
    assert (story.phase, story.condition("Failed")) == ("Failed", ("True", "GateFailed"))
    assert story.condition("OutputsReady") == ("True", "Adopted")


def test_a_pod_that_prepares_itself_ends_when_it_has_adopted_results() -> None:
    story = Story(make_spec(), make_profile(prepare={"mode": "InPod"}))
    story.sees()
    train = make_child("train")
    first = ContainerView("prepare", "terminated", "Completed", exit_code=0, message=adopted_message())
    pods = (make_pod(train, containers=(first, ContainerView("fetch", "running"))),)
    story.sees(train, pods=pods)
    assert story.phase == "Succeeded"
    assert story.sees(train, pods=pods).delete == (train.name,)


def test_how_results_that_are_there_are_met_makes_no_other_run() -> None:
    with_it, without = ({"output": {"uri": "s3://m/o", **more}} for more in ({"ifExists": "Adopt"}, {}))
    assert config_hash(with_it) == config_hash(without)
