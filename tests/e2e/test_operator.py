"""The operator on a real control plane and node, under the shipped RBAC; only the trainer is a fake, named as such."""

from __future__ import annotations

import json

import pytest

from tests.support.jobs import RunningJob, make_manifest

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def start(cluster, namespace):
    """Start a job whose stages end as a script tells."""
    return lambda script="", name="bot", **spec: RunningJob(cluster, namespace, make_manifest(name, script, **spec))


def test_the_main_path_ends_with_outputs_and_every_word_for_gitops(start) -> None:
    job = start()
    status = job.reaches("Succeeded")
    assert status["outputs"]["adapter"]["uri"] == "s3://outputs/out/run-1/adapter"
    assert status["dataset"]["trainExamples"] == 9
    assert status["resolved"]["training"]["totalSteps"] == 20
    assert status["progress"]["percent"] == 100
    assert (job.condition("Ready")["status"], job.condition("Reconciling")["status"]) == ("True", "False")
    assert status["observedGeneration"] == 1
    assert [item["metadata"]["labels"]["finetuning.dev/stage"] for item in job.children()] == ["prepare", "train"]
    assert {"Prepared", "Training", "Succeeded"} <= set(job.events())
    assert job.kubectl("get", "configmaps", "-o", "name").split() == ["configmap/kube-root-ca.crt"]


def test_progress_loss_and_eta_are_in_the_table_while_it_runs(start) -> None:
    job = start("train=post")
    job.until(lambda: job.status.get("progress", {}).get("step") == 7, what="progress")
    row = job.kubectl("get", "ftj", "bot", "--no-headers").split()
    assert row[3:7] == ["Running", "35", "1.25", "2m10s"]
    assert job.status["checkpoint"]["step"] == 5
    assert job.condition("CheckpointAvailable")["status"] == "True"


@pytest.mark.parametrize(
    ("stage", "code", "reason"),
    [("prepare", 12, "DatasetInvalid"), ("train", 31, "LossNotFinite"), ("fetch", 15, "ModelNotFound")],
)
def test_a_failure_that_no_retry_helps_ends_the_job_with_class_code_message_and_log_tail(
    start, stage, code, reason
) -> None:
    job = start(f"{stage}=exit-{code}")
    status = job.reaches("Failed")
    last = status["lastFailure"]
    assert (last["exitCode"], last["reason"], last["message"]) == (code, reason, f"told to end with {code}")
    assert (last["logTail"], last["pod"] != "") == ("the end", True)
    assert job.condition("Failed")["reason"] == reason
    assert job.condition("Stalled")["status"] == "True"
    assert (status["attempt"], status["restarts"]) == (1, {"failures": 0, "disruptions": 0})


def test_a_run_outside_a_gate_fails_once_and_keeps_its_outputs_and_figures(start) -> None:
    job = start("train=gate")
    status = job.reaches("Failed")
    assert (job.condition("Failed")["reason"], job.condition("OutputsReady")["status"]) == ("GateFailed", "True")
    assert status["outputs"]["adapter"]["uri"] == "s3://outputs/out/run-1/adapter"
    assert status["evaluation"]["gates"][0]["passed"] is False
    assert [found["verdict"] for found in status["evaluation"]["comparisons"]] == ["Better"] * 4
    assert status["evaluation"]["judge"]["unclear"] == 1
    assert status["attempt"] == 1


def test_an_infrastructure_failure_is_retried_under_a_new_name(start) -> None:
    job = start("train=once-40")
    status = job.reaches("Succeeded")
    assert (status["attempt"], status["restarts"]) == (2, {"failures": 1, "disruptions": 0})
    names = [item["metadata"]["name"] for item in job.children()]
    assert [name.split("-", 2)[2] for name in names] == ["r1-a1-prep", "r1-a1", "r1-a2"]


def test_what_happened_is_counted(start, operator) -> None:
    before = operator.metrics()
    start("train=once-40").reaches("Succeeded")
    counted = {name: value - before.get(name, 0) for name, value in operator.metrics().items()}
    failure = 'finetune_attempt_failures_total{class="Storage",reason="StorageUnavailable",stage="train"}'
    assert counted['finetune_job_duration_seconds_count{phase="Succeeded"}'] == 1
    assert (counted["finetune_attempts_total"], counted[failure]) == (2, 1)
    assert counted["finetune_job_start_seconds_count"] == 1


def test_the_budget_ends(start) -> None:
    job = start("prepare=exit-50", lifecycle={"retries": {"max": 1, "backoffSeconds": 0}})
    status = job.reaches("Failed")
    assert job.condition("Failed")["reason"] == "RestartBudgetExceeded"
    assert status["lastFailure"]["reason"] == "InternalError"


def test_a_missing_secret_is_said_before_a_gpu_is_asked_for_and_the_job_goes_on_once_it_is_there(start) -> None:
    job = start(output={"uri": "s3://outputs/out", "secretRef": {"name": "s3"}})
    job.until(lambda: job.condition("Prepared").get("reason") == "ContainerConfig", what="the missing Secret")
    assert '"s3" not found' in job.condition("Ready")["message"]
    assert len(job.children()) == 1
    job.kubectl("create", "secret", "generic", "s3", "--from-literal=AWS_ACCESS_KEY_ID=x")
    job.reaches("Succeeded")


def test_an_image_that_is_not_there_is_said(start) -> None:
    job = start(trainer={"image": "fake-trainer:missing"})
    job.until(lambda: job.condition("Prepared").get("reason") == "ImagePull", what="the missing image")


def test_more_gpus_than_any_node_has_is_said_in_the_schedulers_words(start) -> None:
    job = start(resources={"gpusPerNode": 1, "gpuResourceName": "example.com/none"})
    job.until(lambda: job.condition("Running").get("reason") == "Unschedulable", what="Unschedulable")
    assert "Insufficient example.com/none" in job.condition("Ready")["message"]


def test_pods_that_a_quota_refuses_are_told_in_its_words(start, cluster, namespace) -> None:
    cluster.kubectl("create", "quota", "none", "--hard=pods=0", "-n", namespace)
    job = start()
    job.until(lambda: job.condition("Prepared").get("reason") == "PodsRefused", what="the quota's refusal")
    assert job.condition("Ready")["message"].startswith("exceeded quota: none, requested: pods=1")


def test_a_profile_that_is_missing_has_the_job_wait_and_go_on(start, cluster, namespace) -> None:
    job = start(profile=f"pool-{namespace}")
    job.until(lambda: job.condition("Validated").get("reason") == "ProfileNotFound", what="ProfileNotFound")
    profile = {
        "apiVersion": "finetuning.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": f"pool-{namespace}"},
        "spec": {"namespaces": [namespace], "limits": {"allowedImages": ["fake-*"]}},
    }
    cluster.kubectl("apply", "-f", "-", input=json.dumps(profile))
    try:
        job.reaches("Succeeded")
    finally:
        cluster.kubectl("delete", "ftp", f"pool-{namespace}")


def test_a_batch_job_deleted_by_hand_is_a_disruption_and_the_next_attempt_starts(start) -> None:
    job = start("train=run")
    job.reaches("Running")
    job.kubectl("delete", "job", job.status["job"]["name"], "--wait=false")
    job.until(lambda: job.status.get("attempt") == 2 and job.status.get("phase") == "Running", what="attempt 2")
    assert job.status["restarts"] == {"failures": 0, "disruptions": 1}


def test_a_deleted_pod_is_a_disruption_and_the_next_attempt_starts(start) -> None:
    job = start("train=run")
    job.reaches("Running")
    job.kubectl("delete", "pod", "-l", "finetuning.dev/stage=train", "--wait=false")
    job.until(lambda: job.status.get("attempt") == 2 and job.status.get("phase") == "Running", what="attempt 2")
    assert job.status["lastFailure"]["class"] == "Disrupted"
    assert job.status["restarts"]["failures"] == 0


@pytest.mark.parametrize("moment", ["Preparing", "Running", "Succeeded"])
def test_deleting_the_job_at_any_time_leaves_nothing(start, moment) -> None:
    script = {"Preparing": "prepare=run", "Running": "train=run", "Succeeded": ""}[moment]
    job = start(script)
    job.reaches(moment)
    job.delete()
    job.until(lambda: not job.children() and not job.children("pods"), what="end of all children")


def test_a_suspended_job_frees_its_pods_and_goes_on_without_charge(start) -> None:
    job = start("train=run")
    job.reaches("Running")
    job.patch(lifecycle={"suspend": True})
    job.reaches("Suspended")
    assert [pod for pod in job.children("pods") if pod["status"]["phase"] == "Running"] == []
    job.patch(lifecycle={"suspend": False})
    status = job.reaches("Running")
    assert (status["attempt"], status["restarts"]) == (2, {"failures": 0, "disruptions": 0})
    assert {"Suspended", "Training"} <= set(job.events())


def test_a_deadline_ends_the_job_and_what_works_for_it(start) -> None:
    job = start("train=run", lifecycle={"gracePeriodSeconds": 5, "activeDeadlineSeconds": 8})
    job.reaches("Failed")
    assert job.condition("Failed")["reason"] == "DeadlineExceeded"
    last = job.status["lastFailure"]
    assert (last["class"], last["reason"]) == ("Deadline", "DeadlineExceeded")
    job.until(lambda: [item for item in job.children() if not item["status"].get("conditions")] == [], what="its end")


def test_what_has_ended_goes_in_its_time_the_pods_before_the_job(start) -> None:
    job = start(lifecycle={"podTtlSecondsAfterFinished": 1})
    job.reaches("Succeeded")
    job.until(lambda: job.children() + job.children("pods") == [], what="end of its Jobs and pods")
    assert job.status["outputs"]["adapter"]["uri"] == "s3://outputs/out/run-1/adapter"
    job.patch(lifecycle={"ttlSecondsAfterFinished": 1})
    job.until(lambda: job.kubectl("get", "ftj", "-o", "name") == "", what="end of the job")


def test_a_changed_spec_is_a_new_run_with_outputs_of_its_own_and_so_is_a_wish(start) -> None:
    lifecycle = {"gracePeriodSeconds": 5, "onSpecChange": "Rerun"}
    job = start("train=run", lifecycle=lifecycle)
    job.reaches("Running")
    job.patch(dataset={"uri": "s3://fake/all=ok"})
    job.until(lambda: job.status.get("run") == 2, what="second run")
    assert job.reaches("Succeeded")["outputs"]["uri"] == "s3://outputs/out/run-2"
    job.kubectl("annotate", "ftj", "bot", "finetuning.dev/rerun=again")
    job.until(lambda: job.status.get("run") == 3, what="third run")
    assert job.reaches("Succeeded")["outputs"]["uri"] == "s3://outputs/out/run-3"
    assert job.events().count("NewRun") == 2


def test_a_job_created_again_under_its_name_never_meets_its_predecessors_children(start) -> None:
    first = start("train=run")
    first.reaches("Running")
    old = first.children()
    first.delete("--wait=false")
    first.until(lambda: not _exists(first), what="deletion")
    second = start()
    second.reaches("Succeeded")
    assert {item["metadata"]["name"] for item in old}.isdisjoint(
        item["metadata"]["name"]
        for item in second.children()
        if item["metadata"]["ownerReferences"][0]["uid"] == second.get("ftj", "bot")["metadata"]["uid"]
    )


def test_an_operator_that_is_killed_and_restarted_loses_nothing_and_doubles_nothing(start, operator) -> None:
    jobs = [start(script, name) for name, script in (("one", ""), ("two", "train=once-40"), ("three", "train=post"))]
    for _ in range(3):
        operator.kill()
        operator.start()
    jobs[0].reaches("Succeeded")
    assert jobs[1].reaches("Succeeded")["restarts"] == {"failures": 1, "disruptions": 0}
    assert jobs[2].reaches("Running")["attempt"] == 1
    assert [len(job.children()) for job in jobs] == [2, 3, 2]


def test_a_result_whose_pod_is_gone_before_it_was_read_is_collected_without_a_gpu(start, operator) -> None:
    job = start("train=nap")
    job.reaches("Running")
    train = job.status["job"]["name"]
    operator.kill()
    job.until(lambda: job.get("job", train)["status"].get("succeeded") == 1, what="end of the training Job")
    job.kubectl("delete", "pod", "-l", f"batch.kubernetes.io/job-name={train}", "--force", "--grace-period=0")
    operator.start()
    status = job.reaches("Succeeded")
    assert (status["lastFailure"]["reason"], status["restarts"]["failures"]) == ("ResultLost", 0)
    assert job.children()[-1]["spec"]["template"]["spec"]["containers"][0]["command"][-1] == "collect"
    assert status["outputs"]["adapter"]["sha256"] == "b" * 64


def _exists(job: RunningJob) -> bool:
    return bool(job.kubectl("get", "ftj", job.name, "--ignore-not-found", "-o", "name"))
