"""The decision, told as stories: what is seen, what is done, and what the status then says."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from finetune_contract.evaluation import EvaluationSummary, GateResult, Scores
from finetune_contract.exit_codes import FAILURES, ExitCode, FailureClass
from finetune_contract.measures import Measure
from finetune_contract.outcome import TerminationMessage
from finetune_operator.api.status import FineTuneJobStatus, JobReference, Restarts
from finetune_operator.api.views import ChildJob, View
from finetune_operator.policy import waiting
from finetune_operator.policy.decide import decide
from finetune_operator.policy.plan import ChildRequest
from tests.support.builders import (
    NOW,
    SETTINGS,
    Story,
    ended_pod,
    failed_child,
    make_child,
    make_job,
    make_pod,
    make_profile,
    make_report,
    make_spec,
    prepared_message,
    trained_message,
)


def test_a_new_job_gets_a_status_and_its_prepare_job() -> None:
    story = Story()
    plan = story.sees()
    assert plan.create == ChildRequest(stage="prepare", run=1, attempt=1)
    assert (story.phase, story.job.status.run, story.job.status.attempt) == ("Preparing", 1, 1)
    assert story.condition("Reconciling") == ("True", "PodPending")


def test_a_lost_creation_is_repeated_under_the_same_name_and_writes_nothing() -> None:
    story = Story()
    first = story.sees()
    again = story.sees()
    assert again.create == first.create
    assert again.status is None


def test_that_a_job_is_there_is_written_with_its_pods_first_news() -> None:
    story = Story()
    assert story.sees().requeue_after == waiting.PODLESS_SECONDS
    prepare = make_child("prepare", created_at=story.now)
    story.passes(1)
    plan = story.sees(prepare)
    assert (plan.status, plan.requeue_after) == (None, waiting.PODLESS_SECONDS - 1)
    plan = story.sees(prepare, pods=(make_pod(prepare),))
    assert plan.status is not None
    assert plan.status.job == JobReference(name=prepare.name, uid=prepare.uid)


@pytest.mark.parametrize(
    ("created", "state"),
    [
        pytest.param(-5, {}, id="no news came"),
        pytest.param(3600, {}, id="the API server's clock is ahead"),
        pytest.param(0, {"deleting": True}, id="it is on its way out"),
    ],
)
def test_that_a_job_is_there_is_written_alone_where_nothing_else_will_be(created: int, state: dict[str, bool]) -> None:
    story = Story()
    story.sees()
    prepare = make_child("prepare", created_at=story.now + timedelta(seconds=created), **state)
    assert story.sees(prepare).status is not None


def test_the_whole_way_to_success() -> None:
    story = Story()
    train = story.is_prepared()
    assert story.job.status.dataset is not None
    assert story.condition("Prepared") == ("True", "Prepared")
    story.sees(train, pods=(make_pod(train, "Pending"),))
    assert story.phase == "Starting"
    story.sees(train, pods=(make_pod(train),))
    assert story.phase == "Running"
    done = make_child("train", "complete")
    story.sees(done, pods=(ended_pod(done, exit_code=0, message=trained_message().encode()),))
    assert story.phase == "Succeeded"
    assert story.condition("Ready") == ("True", "Succeeded")
    assert story.condition("Reconciling")[0] == story.condition("Stalled")[0] == "False"
    outputs = story.job.status.outputs
    assert outputs is not None
    assert outputs.manifest == "s3://models/out/run-1/manifest.json"
    assert outputs.adapter is not None
    assert outputs.adapter.uri == "s3://models/out/run-1/adapter"
    assert outputs.gguf is not None
    assert outputs.gguf.uri == "s3://models/out/run-1/gguf"
    assert (outputs.merged, outputs.warnings) == (None, ("not pushed",))


def test_the_training_job_follows_prepare_in_the_same_decision() -> None:
    story = Story()
    story.sees()
    done = make_child("prepare", "complete")
    plan = story.sees(done, pods=(ended_pod(done, exit_code=0, message=prepared_message().encode()),))
    assert plan.create == ChildRequest(stage="train", run=1, attempt=1)
    assert plan.status is not None
    assert plan.status.resolved is not None
    assert plan.status.resolved.prepared_sha256 == "a" * 64


def test_after_the_end_nothing_is_ever_done_again() -> None:
    story = Story()
    story.sees()
    story.sees(failed_child("prepare", ExitCode.DATASET_INVALID))
    ended = story.job.status
    plan = story.sees()
    assert (plan.create, plan.delete, plan.status) == (None, (), None)
    assert story.job.status == ended


def test_a_job_that_is_being_deleted_is_left_alone() -> None:
    story = Story()
    story.job = make_job(deleting=True)
    assert story.sees().create is None


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.reason)
def test_every_exit_code_has_its_class_reason_and_policy(failure) -> None:
    story = Story()
    train = story.is_prepared()
    story.sees(train, pods=(make_pod(train),))
    failed = failed_child("train", failure.code)
    # Outside a gate the run has a result, without which it would be collected first.
    said = trained_message().model_copy(update={"exit_code": failure.code, "reason": failure.reason})
    ended = ended_pod(failed, exit_code=failure.code, message=said.encode())
    plan = story.sees(failed, pods=(ended,) if failure.code is ExitCode.GATE_FAILED else ())
    last = story.job.status.last_failure
    assert last is not None
    assert (last.exit_code, last.reason, last.failure_class) == (failure.code, failure.reason, failure.failure_class)
    final = failure.failure_class in (FailureClass.USER_ERROR, FailureClass.NON_FINITE)
    assert (story.phase == "Failed") == final
    assert (story.job.status.attempt == 1) == final
    assert plan.create is None  # the next attempt waits for its backoff
    charged = story.job.status.restarts
    assert charged is not None
    disrupted = failure.failure_class is FailureClass.DISRUPTED
    again = (0, 1) if disrupted else (0, 0) if final else (1, 0)  # what is not tried again was not started again
    assert (charged.failures, charged.disruptions) == again


def test_pods_are_ready_when_all_of_them_are() -> None:
    story = Story()
    story.job = make_job(make_spec(resources={"nodes": 2}))
    train = story.is_prepared()
    first, second = (make_pod(train, name=f"{train.name}-{n}-abcde", uid=f"pod-{n}") for n in (0, 1))
    story.sees(train, pods=(first,))
    assert story.condition("PodsReady")[0] == "False"
    story.sees(train, pods=(first, second))
    assert story.condition("PodsReady")[0] == "True"
    done = ended_pod(train, exit_code=0, name=second.name, uid=second.uid)
    story.sees(train, pods=(first, done))  # the first one exports what both have trained
    assert story.condition("PodsReady")[0] == "True"


def test_of_several_pods_the_one_that_failed_first_says_why() -> None:
    story = Story()
    story.job = make_job(make_spec(resources={"nodes": 2}))
    train = story.is_prepared()
    failed = failed_child("train", ExitCode.OUT_OF_MEMORY)
    said = TerminationMessage(stage="train", exit_code=30, reason="OutOfMemory", message="too large")
    lost = said.model_copy(update={"exit_code": 46, "reason": "RankLost", "message": "lost it"})
    other = ended_pod(failed, exit_code=46, message=lost.encode(), name=f"{train.name}-1-xyz", uid="pod-1")
    first = ended_pod(failed, exit_code=30, message=said.encode())
    story.sees(failed, pods=(other, first))
    last = story.job.status.last_failure
    assert last is not None
    assert (last.reason, last.message, last.pod) == ("OutOfMemory", "too large", first.name)


def test_a_failure_says_message_pod_and_log_tail_of_the_trainer() -> None:
    story = Story()
    story.sees()
    failed = failed_child("prepare", ExitCode.DATASET_INVALID)
    said = prepared_message().model_copy(
        update={"exit_code": 12, "reason": "DatasetInvalid", "message": "train.jsonl line 7: not JSON",
                "prepared": None, "log_tail": "last words"}
    )  # fmt: skip
    story.sees(failed, pods=(ended_pod(failed, exit_code=12, message=said.encode()),))
    last = story.job.status.last_failure
    assert last is not None
    assert (last.message, last.log_tail, last.pod) == (
        "train.jsonl line 7: not JSON",
        "last words",
        f"{failed.name}-0-abcde",
    )
    assert story.condition("Failed") == ("True", "DatasetInvalid")
    assert story.condition("Stalled") == ("True", "DatasetInvalid")


def test_retries_wait_longer_each_time_and_end_with_the_budget() -> None:
    story = Story(make_spec(lifecycle={"retries": {"max": 2, "backoffSeconds": 10}}))
    story.is_prepared()
    waits = []
    for attempt in (1, 2, 3):
        train = make_child("train", attempt=attempt)
        story.sees(train, pods=(make_pod(train),))
        plan = story.sees(failed_child("train", ExitCode.STORAGE_UNAVAILABLE, attempt=attempt))
        waits.append(plan.requeue_after)
        story.passes(plan.requeue_after or 0)
        created = story.sees().create
        assert (created.attempt if created else None) == (attempt + 1 if attempt < 3 else None)
    assert waits == [10.0, 20.0, None]
    assert story.condition("Failed") == ("True", "RestartBudgetExceeded")
    assert story.job.status.last_failure is not None
    assert story.job.status.last_failure.reason == "StorageUnavailable"
    assert story.job.status.restarts == Restarts(failures=2)


def runs_out_of_memory(story: Story, *, attempt: int) -> None:
    train = make_child("train", attempt=attempt)
    story.sees(train, pods=(make_pod(train),))
    story.sees(failed_child("train", ExitCode.OUT_OF_MEMORY, attempt=attempt))
    story.passes(300)
    story.sees()


def test_after_memory_ran_out_attempts_take_half_the_micro_batch_down_to_one_example() -> None:
    story = Story(make_spec(lifecycle={"retries": {"max": 9}}))
    story.is_prepared()
    tried = []
    for attempt in (1, 2, 3):
        runs_out_of_memory(story, attempt=attempt)
        assert story.job.status.resolved is not None
        tried.append((story.job.status.attempt, story.job.status.resolved.micro_batch_size, story.phase))
    assert tried == [(2, 2, "Restarting"), (3, 1, "Restarting"), (3, 1, "Failed")]
    assert story.condition("Failed") == ("True", "OutOfMemory")


@pytest.mark.parametrize(
    ("checkpoint", "whence"), [(None, "attempt 2 begins anew"), (10, "attempt 2 goes on from step 10")]
)
def test_a_preempted_attempt_says_what_happened_and_where_the_next_begins(checkpoint: int | None, whence: str) -> None:
    story = Story()
    train = story.is_prepared()
    pod = make_pod(train)
    story.sees(train, pods=(pod,), report=make_report(pod, checkpoint_step=checkpoint))
    said = f"Pod team/{pod.name} has condition DisruptionTarget matching FailJob rule at index 0"
    evicted = replace(train, state="failed", failure_reason="PodFailurePolicy", failure_message=said)
    (event,) = story.sees(evicted).events
    assert event.message == f"Evicted: pod {pod.name} was preempted, evicted or drained; {whence}"


def test_where_less_is_not_wanted_memory_that_ran_out_ends_the_job() -> None:
    story = Story(make_spec(lifecycle={"retries": {"onOutOfMemory": "Fail"}}))
    story.is_prepared()
    runs_out_of_memory(story, attempt=1)
    assert story.condition("Failed") == ("True", "OutOfMemory")


def test_the_next_attempt_is_not_created_before_its_time() -> None:
    story = Story()
    train = story.is_prepared()
    story.sees(train)
    story.sees(failed_child("train", ExitCode.STORAGE_UNAVAILABLE))
    story.passes(9)
    early = story.sees()
    assert (early.create, early.requeue_after, early.status) == (None, 1.0, None)


def test_a_job_deleted_by_hand_is_a_disruption_and_its_name_is_never_used_again() -> None:
    story = Story()
    train = story.is_prepared()
    story.sees(train, pods=(make_pod(train),))
    plan = story.sees()
    assert plan.create is None
    assert story.job.status.attempt == 2
    assert story.job.status.restarts is not None
    assert (story.job.status.restarts.failures, story.job.status.restarts.disruptions) == (0, 1)
    story.passes(1)
    assert story.sees().create == ChildRequest(stage="train", run=1, attempt=2)


@pytest.mark.parametrize(
    ("gone", "attempt"),
    [
        pytest.param(make_child("train"), 2, id="this attempt's"),
        pytest.param(make_child("prepare"), 1, id="that of the stage before"),
        pytest.param(None, 1, id="none"),
    ],
)
def test_a_job_that_went_before_the_status_said_that_it_was_there_was_there(
    gone: ChildJob | None, attempt: int
) -> None:
    story = Story()
    story.is_prepared()
    plan = decide(View(job=story.job, gone=gone), story.now, SETTINGS)
    status = plan.status or story.job.status
    assert status.attempt == attempt
    assert (plan.create is None) == (attempt == 2)


def test_a_suspended_job_whose_job_went_unseen_goes_on_under_another_name() -> None:
    story = Story()
    train = story.is_prepared()
    story.job = make_job(make_spec(lifecycle={"suspend": True}), story.job.status)
    plan = decide(View(job=story.job, gone=train), story.now, SETTINGS)
    assert plan.status is not None
    assert (plan.status.phase, plan.status.attempt, plan.status.last_failure) == ("Suspended", 2, None)


def test_no_attempt_begins_while_a_pod_of_the_last_one_lives() -> None:
    story = Story()
    train = story.is_prepared()
    pod = make_pod(train, deleted_at=NOW + timedelta(seconds=30))
    story.sees(train, pods=(make_pod(train),))
    story.sees(pods=(pod,))
    story.passes(1)
    waiting = story.sees(pods=(pod,))
    assert waiting.create is None
    assert waiting.requeue_after == pytest.approx(89)
    assert story.sees().create == ChildRequest(stage="train", run=1, attempt=2)


def test_a_lost_node_cannot_hang_the_job() -> None:
    story = Story()
    train = story.is_prepared()
    pod = make_pod(train, disruption="DeletionByTaintManager", disrupted_at=NOW, grace_seconds=300)
    early = story.sees(train, pods=(pod,))
    assert (early.delete, early.requeue_after) == ((), 360)
    story.passes(360)
    plan = story.sees(train, pods=(pod,))
    assert plan.delete == (train.name,)
    assert story.job.status.last_failure is not None
    assert story.job.status.last_failure.reason == "Evicted"
    story.passes(1)
    assert story.sees(pods=(pod,)).create == ChildRequest(stage="train", run=1, attempt=2)


def test_a_result_that_was_lost_is_collected_without_a_gpu() -> None:
    story = Story()
    train = story.is_prepared()
    story.sees(train, pods=(make_pod(train),))
    story.sees(make_child("train", "complete"))
    assert story.job.status.last_failure is not None
    assert story.job.status.last_failure.reason == "ResultLost"
    story.passes(1)
    assert story.sees().create == ChildRequest(stage="train", run=1, attempt=2, collect=True)


def gate_failed_message() -> TerminationMessage:
    said = trained_message()
    assert said.trained is not None
    gate = GateResult(metric=Measure.EXACT_MATCH, min=0.9, value=0.4, passed=False)
    evaluation = EvaluationSummary(base=Scores(exact_match=0.1), tuned=Scores(exact_match=0.4), gates=(gate,))
    trained = said.trained.model_copy(update={"evaluation": evaluation})
    told = {"exit_code": ExitCode.GATE_FAILED, "reason": "GateFailed", "message": "exactMatch is 0.4, must be ..."}
    return said.model_copy(update={**told, "trained": trained})


def test_a_run_outside_a_gate_has_failed_for_good_and_has_its_outputs() -> None:
    story = Story()
    train = story.is_prepared()
    story.sees(train, pods=(make_pod(train),))
    failed = failed_child("train", ExitCode.GATE_FAILED)
    ended = ended_pod(failed, exit_code=ExitCode.GATE_FAILED, message=gate_failed_message().encode())

    plan = story.sees(failed, pods=(ended,))

    assert (plan.create, story.phase) == (None, "Failed")
    assert story.condition("Failed") == ("True", "GateFailed")
    assert story.condition("OutputsReady") == ("True", "ManifestWritten")
    status = story.job.status
    assert status.outputs is not None
    assert status.outputs.manifest_sha256 == "c" * 64
    assert status.evaluation is not None
    assert [(gate.value, gate.passed) for gate in status.evaluation.gates] == [(0.4, False)]
    assert status.restarts is not None
    assert status.restarts.failures == 0


def test_the_result_of_a_run_outside_a_gate_is_collected_if_its_message_went() -> None:
    story = Story()
    train = story.is_prepared()
    story.sees(train, pods=(make_pod(train),))
    story.sees(failed_child("train", ExitCode.GATE_FAILED))
    assert story.phase == "Restarting"
    story.passes(1)
    assert story.sees().create == ChildRequest(stage="train", run=1, attempt=2, collect=True)

    again = failed_child("train", ExitCode.GATE_FAILED, attempt=2)
    ended = ended_pod(again, exit_code=ExitCode.GATE_FAILED, message=gate_failed_message().encode())
    story.sees(again, pods=(ended,))

    assert story.condition("Failed") == ("True", "GateFailed")
    assert story.job.status.outputs is not None


def test_a_lost_result_of_prepare_prepares_again() -> None:
    story = Story()
    story.sees()
    story.sees(make_child("prepare", "complete"))
    story.passes(1)
    assert story.sees().create == ChildRequest(stage="prepare", run=1, attempt=2)


def test_an_image_that_ends_well_without_a_result_is_not_taken_for_success() -> None:
    story = Story()
    train = story.is_prepared()
    done = make_child("train", "complete")
    story.sees(train)
    story.sees(done, pods=(ended_pod(done, exit_code=0, message="bye"),))
    assert story.phase == "Restarting"


def test_the_status_write_that_moves_the_attempt_precedes_its_job() -> None:
    story = Story()
    train = story.is_prepared()
    story.sees(train)
    plan = story.sees(failed_child("train", ExitCode.PREEMPTED))
    assert plan.status is not None
    assert plan.status.attempt == 2
    assert plan.create is None


PENDING = [
    ("unschedulable", {"unschedulable": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"}, "Unschedulable"),
    ("missing-secret", {"waiting": ("CreateContainerConfigError", 'secret "s3" not found')}, "ContainerConfig"),
    ("image", {"waiting": ("ImagePullBackOff", "Back-off pulling image")}, "ImagePull"),
]


@pytest.mark.parametrize(("state", "reason"), [row[1:] for row in PENDING], ids=[row[0] for row in PENDING])
def test_why_a_pod_waits_is_said_in_the_words_of_whoever_holds_it_up(state, reason) -> None:
    story = Story()
    story.sees()
    prepare = make_child("prepare")
    pod = make_pod(prepare, "Pending")
    if "waiting" in state:
        why, message = state["waiting"]
        container = pod.containers[0].__class__("prepare", "waiting", why, message)
        pod = make_pod(prepare, "Pending", containers=(container,))
        words = message
    else:
        pod = make_pod(prepare, "Pending", **state)
        words = state["unschedulable"]
    plan = story.sees(prepare, pods=(pod,))
    assert story.condition("Prepared") == ("False", reason)
    assert words in next(item.message for item in story.job.status.conditions if item.type == "Ready")
    assert [event.type for event in plan.events] == ["Warning"]
    assert story.sees(prepare, pods=(pod,)).events == ()


def test_a_job_that_may_go_on_again_is_announced_and_an_ordinary_one_is_not() -> None:
    assert Story().sees().events == ()
    story = Story(make_spec(profile="a100"))
    assert [event.reason for event in story.sees().events] == ["ProfileNotFound"]
    story.profiles = (make_profile("a100", default=False),)
    assert [event.reason for event in story.sees().events] == ["Valid"]


def test_progress_of_a_live_pod_reaches_the_status() -> None:
    story = Story()
    train = story.is_prepared()
    pod = make_pod(train)
    story.sees(train, pods=(pod,), report=make_report(pod, loss=1.5, eta_seconds=200, checkpoint_step=4))
    status = story.job.status
    assert status.progress is not None
    assert (status.progress.step, status.progress.percent, status.progress.loss, status.progress.eta) == (
        5,
        27,
        1.5,
        "3m20s",
    )
    assert status.checkpoint is not None
    assert status.checkpoint.step == 4
    assert story.condition("CheckpointAvailable") == ("True", "Checkpointed")


def test_a_pod_that_has_ended_is_not_said_to_start_while_its_job_is_not_complete_yet() -> None:
    story = Story()
    train = story.is_prepared()
    story.sees(train, pods=(make_pod(train),))
    story.sees(train, pods=(ended_pod(train, exit_code=0, message=trained_message().encode()),))
    assert story.phase == "Running"


def test_a_loss_is_shown_with_the_digits_that_people_read() -> None:
    story = Story()
    train = story.is_prepared()
    pod = make_pod(train)
    story.sees(train, pods=(pod,), report=make_report(pod, loss=0.01407310739159584, eval_loss=12.34567))
    assert story.job.status.progress is not None
    assert (story.job.status.progress.loss, story.job.status.progress.eval_loss) == (0.01407, 12.35)


def test_progress_alone_is_written_every_few_seconds_at_most() -> None:
    story = Story()
    train = story.is_prepared()
    pod = make_pod(train)
    story.sees(train, pods=(pod,), report=make_report(pod, step=1))
    story.passes(2)
    soon = story.sees(train, pods=(pod,), report=make_report(pod, step=2, received_at=story.now))
    assert (soon.status, soon.requeue_after) == (None, 3.0)
    story.passes(3)
    later = story.sees(train, pods=(pod,), report=make_report(pod, step=2, received_at=NOW + timedelta(seconds=2)))
    assert later.status is not None
    assert later.status.progress is not None
    assert later.status.progress.step == 2


def test_a_post_of_an_earlier_attempts_pod_is_ignored() -> None:
    story = Story()
    train = story.is_prepared()
    other = make_pod(make_child("train", attempt=7))
    story.sees(train, pods=(make_pod(train),), report=make_report(other))
    assert story.job.status.progress is None


def test_progress_never_moves_run_attempt_or_restarts() -> None:
    story = Story()
    train = story.is_prepared()
    pod = make_pod(train)
    story.sees(train, pods=(pod,))
    before = story.job.status
    story.sees(train, pods=(pod,), report=make_report(pod))
    after = story.job.status
    assert (after.run, after.attempt, after.restarts) == (before.run, before.attempt, before.restarts)


PROFILES = [
    ("missing", make_spec(profile="a100"), (), "ProfileNotFound"),
    ("several-defaults", make_spec(), (make_profile("a"), make_profile("b")), "SeveralDefaultProfiles"),
    ("none-is-default", make_spec(), (make_profile("a", default=False),), "ProfileRequired"),
    ("namespace", make_spec(), (make_profile(namespaces=["prod-*"]),), "ProfileRefused"),
    ("model", make_spec(), (make_profile(limits={"allowedModels": ["hf://meta-llama/*"]}),), "ProfileRefused"),
    ("image", make_spec(trainer={"image": "mine"}), (make_profile(limits={}),), "ProfileRefused"),
    (
        "service-account",
        make_spec(scheduling={"serviceAccountName": "robot"}),
        (make_profile(defaults={"scheduling": {"serviceAccountName": "tuning"}}),),
        "ProfileRefused",
    ),
    ("gpus", make_spec(), (make_profile(limits={"maxGpus": 0}),), "ProfileRefused"),
    (
        "gpus of all pods",
        make_spec(resources={"nodes": 2, "gpusPerNode": 4}),
        (make_profile(limits={"maxGpus": 7}),),
        "ProfileRefused",
    ),
    ("nodes", make_spec(resources={"nodes": 2}), (make_profile(limits={"maxNodes": 1}),), "ProfileRefused"),
    ("dataset", make_spec(), (make_profile(limits={"allowedDatasets": ["s3://ours/*"]}),), "ProfileRefused"),
    (
        "general-text",
        make_spec(evaluation={"forgetting": {"uri": "s3://others/text"}}),
        (make_profile(limits={"allowedDatasets": ["s3://data/*"]}),),
        "ProfileRefused",
    ),
    ("memory", make_spec(resources={"memory": "2Ti"}), (make_profile(limits={"maxMemory": "1Ti"}),), "ProfileRefused"),
    ("memory-not-said", make_spec(), (make_profile(limits={"maxMemory": "1Ti"}),), "ProfileRefused"),
    (
        "resume-from-another-team",
        make_spec(checkpoint={"resumeFrom": "s3://others/run-1"}),
        (make_profile(limits={"allowedOutputPrefixes": ["s3://models"]}),),
        "ProfileRefused",
    ),
    (
        "hub",
        make_spec(output={"uri": "s3://models/out", "hub": {"repo": "elsewhere/x"}}),
        (make_profile(limits={"allowedOutputPrefixes": ["s3://models", "hf://ours"]}),),
        "ProfileRefused",
    ),
    ("output", make_spec(), (make_profile(limits={"allowedOutputPrefixes": ["s3://models/o"]}),), "ProfileRefused"),
    *(
        (
            f"prefix-of-another-tenant: {uri}",
            make_spec(output={"uri": uri}),
            (make_profile(limits={"allowedOutputPrefixes": ["s3://models/ours", "pvc://shared/ours/"]}),),
            "ProfileRefused",
        )
        for uri in (
            "s3://models/theirs",
            "s3://models/ours-too",
            "s3://models/ours/../theirs",
            "s3://models/ours/..",
            "S3://models/ours/x",
            "s3://models",
            "pvc://shared/ours/../theirs",
            "pvc://shared/our",
        )
    ),
]


@pytest.mark.parametrize(
    ("spec", "profiles", "reason"), [row[1:] for row in PROFILES], ids=[row[0] for row in PROFILES]
)
def test_a_profile_that_is_missing_or_refuses_has_the_job_wait_with_the_reason(spec, profiles, reason) -> None:
    story = Story(spec, *profiles)
    plan = story.sees()
    assert (plan.create, story.phase) == (None, "Pending")
    assert story.condition("Validated") == ("False", reason)
    assert story.condition("Stalled") == ("True", reason)


@pytest.mark.parametrize(
    "profile",
    [{"limits": {"allowedServiceAccounts": ["rob*"]}}, {"defaults": {"scheduling": {"serviceAccountName": "robot"}}}],
    ids=["among the allowed", "the profile's own"],
)
def test_a_profile_lets_a_job_run_as_a_service_account(profile) -> None:
    story = Story(make_spec(scheduling={"serviceAccountName": "robot"}), make_profile(**profile))
    assert story.sees().create is not None


def test_where_profiles_are_no_must_a_job_that_names_none_runs_without_one() -> None:
    view = View(job=make_job(), profiles=(make_profile("a", default=False),))
    plan = decide(view, NOW, replace(SETTINGS, require_profile=False))
    assert plan.create is not None
    assert plan.status is not None
    assert plan.status.resolved is not None
    assert plan.status.resolved.profile is None


def test_a_job_goes_on_by_itself_once_its_profile_is_there() -> None:
    story = Story(make_spec(profile="a100"))
    story.sees()
    story.profiles = (make_profile("a100", default=False),)
    assert story.sees().create is not None
    assert story.condition("Stalled")[0] == "False"


def test_a_run_keeps_the_profile_with_which_it_began() -> None:
    story = Story(make_spec(), make_profile(trainer={"image": "old:1"}))
    story.sees()
    story.profiles = (make_profile(trainer={"image": "new:2"}, namespaces=["elsewhere"]),)
    plan = story.sees()
    assert plan.effective is not None
    assert plan.effective.image == "old:1"


DEFAULTS = [
    ("job-wins", {"hyperparameters": {"batchSize": 4}}, {"batchSize": 8, "seed": 1}, {"batchSize": 4, "seed": 1}),
    ("max-steps-drops-epochs", {"hyperparameters": {"maxSteps": 7}}, {"epochs": 2}, {"maxSteps": 7}),
]


@pytest.mark.parametrize(
    ("own", "defaults", "expected"), [row[1:] for row in DEFAULTS], ids=[row[0] for row in DEFAULTS]
)
def test_the_profiles_defaults_stand_below_the_jobs_own_fields(own, defaults, expected) -> None:
    story = Story(make_spec(**own), make_profile(defaults={"hyperparameters": defaults}))
    plan = story.sees()
    assert plan.effective is not None
    wire = plan.effective.spec.hyperparameters.model_dump(by_alias=True)
    assert {key: wire[key] for key in expected} == expected
    assert (wire["epochs"] is None) == ("maxSteps" in expected or "epochs" not in defaults)


@pytest.mark.parametrize(
    ("own", "default", "expected"),
    [
        ({}, {"type": "fp8"}, "fp8"),
        ({"method": "QLoRA"}, {"type": "fp8"}, None),
        ({"method": "Full"}, {"type": "fp8"}, None),
        ({"method": "QLoRA"}, {"doubleQuant": False}, "nf4"),
        ({}, {"doubleQuant": False}, None),
        ({"quantization": {"type": "fp8"}}, {"doubleQuant": False}, "fp8"),
        ({"lora": {"dora": True}}, {"type": "fp8"}, None),
    ],
    ids=str,
)
def test_the_profiles_number_format_is_for_jobs_that_it_goes_with(own, default, expected) -> None:
    plan = Story(make_spec(**own), make_profile(defaults={"quantization": default})).sees()
    assert plan.effective is not None
    found = plan.effective.spec.quantization
    assert (found and found.type) == expected
    assert found is None or found.double_quant == ("doubleQuant" not in default or "quantization" in own)


def test_what_the_profile_has_filled_in_stands_in_the_status() -> None:
    story = Story(make_spec(resources={"nodes": 2}), make_profile(defaults={"resources": {"nodes": 4, "cpu": 8}}))
    story.sees()
    assert story.job.status.resolved is not None
    assert story.job.status.resolved.defaults == {"resources": {"cpu": 8}}


@pytest.mark.parametrize(("own", "limit"), [(None, 60), (90, 60), (30, 30)], ids=["none", "too long", "shorter"])
def test_no_job_runs_longer_than_its_profile_allows(own, limit) -> None:
    lifecycle = {} if own is None else {"activeDeadlineSeconds": own}
    story = Story(make_spec(lifecycle=lifecycle), make_profile(limits={"maxActiveDeadlineSeconds": 60}))
    story.sees()
    story.passes(limit - 1)
    story.sees()
    assert story.phase != "Failed"
    story.passes(1)
    story.sees()
    assert story.condition("Failed") == ("True", "DeadlineExceeded")


def test_a_spec_of_another_version_is_a_condition_and_no_crash() -> None:
    story = Story(make_spec(method="Sorcery"))
    story.sees()
    assert story.condition("Validated") == ("False", "InvalidSpec")


def test_a_pattern_that_is_none_is_a_condition_and_starts_no_pod() -> None:
    story = Story(make_spec(evaluation={"metrics": ["regex"], "regex": {"pattern": "(unclosed"}}))
    plan = story.sees()
    assert plan.create is None
    assert story.condition("Validated") == ("False", "InvalidSpec")
    said = next(item.message for item in story.job.status.conditions if item.type == "Validated")
    assert "spec.evaluation.regex.pattern" in said
    assert "missing ), unterminated subpattern" in said


def test_a_status_survives_its_way_through_the_api() -> None:
    story = Story()
    train = story.is_prepared()
    pod = make_pod(train)
    story.sees(train, pods=(pod,), report=make_report(pod, loss=1.0))
    wire = json.loads(json.dumps(story.job.status.to_wire()))
    assert FineTuneJobStatus.model_validate(wire) == story.job.status
