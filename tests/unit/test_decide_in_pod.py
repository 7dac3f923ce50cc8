"""A profile that has the training pod prepare: one Job, whose first container tells what the data are."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_contract.exit_codes import ExitCode
from finetune_operator.api.views import ChildJob, ContainerView, PodView
from finetune_operator.builders.job import build_job
from finetune_operator.policy.plan import Plan
from tests.support.builders import (
    Story,
    failed_child,
    make_child,
    make_pod,
    make_profile,
    make_spec,
    make_workload,
    prepared_message,
    trained_message,
)

PREPARES = ContainerView("prepare", "running", "")
WAITS = ContainerView("train", "waiting", "PodInitializing")
HAS_PREPARED = ContainerView("prepare", "terminated", "Completed", exit_code=0, message=prepared_message().encode())
TRAINS = ContainerView("train", "running", "")
HAS_TRAINED = ContainerView("train", "terminated", "Completed", exit_code=0, message=trained_message().encode())


def begun(**spec: Any) -> Story:
    """Return a job whose first Job is to be created."""
    return Story(make_spec(**spec), make_profile(prepare={"mode": "InPod"}))


def pod(child: ChildJob, *containers: ContainerView, **changes: Any) -> PodView:
    return make_pod(child, containers=containers, **changes)


def asked(plan: Plan) -> tuple[str, int]:
    assert plan.create is not None
    return plan.create.stage, plan.create.attempt


def init_containers(story: Story, plan: Plan) -> list[str]:
    """Return the init containers of the Job that a plan asks for."""
    assert plan.effective is not None
    assert plan.create is not None
    request = plan.create
    job = build_job(
        story.job, plan.effective.spec, plan.effective.profile_spec, stage=request.stage, run=request.run,
        attempt=request.attempt, image="trainer:1", collect=request.collect, progress_url="", progress_ca="",
    )  # fmt: skip
    return [container["name"] for container in job["spec"]["template"]["spec"].get("initContainers", [])]


def test_the_whole_life_is_one_job() -> None:
    story, train = begun(), make_child("train")
    first = story.sees()
    assert (asked(first), init_containers(story, first)) == (("train", 1), ["prepare", "fetch"])
    story.sees(train, pods=(pod(train, PREPARES, WAITS, ready=False),))
    assert (story.phase, story.condition("Prepared")) == ("Preparing", ("False", "Preparing"))
    plan = story.sees(train, pods=(pod(train, HAS_PREPARED, WAITS, ready=False),))
    assert (plan.create, story.condition("Prepared")[0], story.phase) == (None, "True", "Starting")
    status = story.job.status
    assert status.dataset is not None
    assert status.job is not None
    assert (status.dataset.examples, status.job.name) == (100, train.name)
    story.sees(train, pods=(pod(train, HAS_PREPARED, TRAINS),))
    assert story.phase == "Running"
    done = make_child("train", "complete")
    story.sees(done, pods=(pod(done, HAS_PREPARED, HAS_TRAINED, phase="Succeeded"),))
    assert story.phase == "Succeeded"


def test_what_was_prepared_is_not_prepared_again_by_the_next_attempt() -> None:
    story, train = begun(), make_child("train")
    story.sees()
    story.sees(train, pods=(pod(train, HAS_PREPARED, TRAINS),))
    story.sees(failed_child("train", ExitCode.STORAGE_UNAVAILABLE))
    story.passes(600)
    plan = story.sees()
    assert (asked(plan), init_containers(story, plan)) == (("train", 2), ["fetch"])


def test_an_attempt_that_fails_before_the_data_are_known_prepares_anew() -> None:
    story = begun()
    story.sees()
    story.sees(failed_child("train", ExitCode.STORAGE_UNAVAILABLE))
    failure = story.job.status.last_failure
    assert failure is not None
    assert failure.stage == "prepare"
    story.passes(600)
    plan = story.sees()
    assert (asked(plan), init_containers(story, plan)) == (("train", 2), ["prepare", "fetch"])


def test_bad_data_end_the_job_with_their_reason() -> None:
    story = begun()
    story.sees()
    story.sees(failed_child("train", ExitCode.DATASET_INVALID))
    assert (story.phase, story.condition("Failed")) == ("Failed", ("True", "DatasetInvalid"))


def test_a_first_word_that_nobody_saw_is_read_at_the_end() -> None:
    story = begun()
    story.sees()
    done = make_child("train", "complete")
    story.sees(done, pods=(pod(done, HAS_PREPARED, HAS_TRAINED, phase="Succeeded"),))
    assert story.phase == "Succeeded"
    assert story.job.status.dataset is not None


def test_it_waits_in_its_queue_before_anything_is_known() -> None:
    story, train = begun(scheduling={"queue": "tuning"}), make_child("train", suspended=True)
    story.sees()
    story.sees(train, workload=make_workload(train))
    assert story.phase == "Queued"


@pytest.mark.parametrize(
    "story",
    [Story(), begun(resources={"nodes": 2})],
    ids=["no profile", "several pods"],
)
def test_all_others_prepare_in_a_job_of_their_own(story: Story) -> None:
    assert asked(story.sees()) == ("prepare", 1)
