"""What others do to a job's children, its namespace and its neighbours."""

from __future__ import annotations

import json

import pytest

from tests.support.jobs import RunningJob, make_manifest

pytestmark = pytest.mark.usefixtures("operator")
OWNER = [{"apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "uid": "0f9c2d4e-0000", "controller": True}]


@pytest.mark.long
def test_a_child_that_somebody_else_adopted_is_left_to_them(start, proxy) -> None:
    job = start("train=nap")
    job.reaches("Running")
    name = job.status["job"]["name"]
    job.kubectl("patch", "job", name, "--type=merge", "-p", json.dumps({"metadata": {"ownerReferences": []}}))
    status = job.reaches("Succeeded")
    assert (status["attempt"], status["restarts"]) == (2, {"failures": 0, "disruptions": 1})
    assert not [write for write in proxy.writes if write.startswith("DELETE")]
    assert job.get("job", name)["status"]["succeeded"] == 1


@pytest.mark.long
def test_a_child_whose_labels_were_changed_is_still_the_attempts(start) -> None:
    job = start("train=nap")
    job.reaches("Running")
    job.kubectl("label", "job", job.status["job"]["name"], "finetuning.dev/attempt=7", "--overwrite")
    assert job.reaches("Succeeded")["attempt"] == 1


@pytest.mark.long
def test_a_namespace_that_goes_takes_everything_along_and_the_operator_goes_on(cluster, proxy, operator, start) -> None:
    cluster.kubectl("create", "namespace", "doomed")
    doomed = RunningJob(cluster, "doomed", make_manifest("bot", "train=run"))
    doomed.reaches("Running")
    cluster.kubectl("delete", "namespace", "doomed", "--timeout=60s")
    start().reaches("Succeeded")
    assert operator.is_healthy()


@pytest.mark.long
def test_a_namespace_that_goes_while_the_operator_is_away(cluster, proxy, operator, start) -> None:
    cluster.kubectl("create", "namespace", "doomed")
    doomed = RunningJob(cluster, "doomed", make_manifest("bot", "train=run"))
    doomed.reaches("Running")
    operator.kill()
    cluster.kubectl("delete", "namespace", "doomed", "--timeout=60s")
    proxy.forget()
    operator.start()
    start().reaches("Succeeded")
    assert not [write for write in proxy.writes if "doomed" in write]


@pytest.mark.long
def test_a_thousand_bad_jobs_hold_up_no_good_one(cluster, proxy, operator, namespace, start) -> None:
    bad = [make_manifest(f"bad-{number}", profile="there-is-none") for number in range(1000)]
    cluster.kubectl(
        "create", "-n", namespace, "-f", "-", input=json.dumps({"kind": "List", "apiVersion": "v1", "items": bad})
    )
    good = start(name="good")
    good.reaches("Succeeded", seconds=60)
    good.until(lambda: _waiting(good) == 1000, what="reason for each bad one", seconds=60)
    assert operator.is_healthy()
    good.kubectl("delete", "ftj", "--all", "--wait=false")


def _waiting(job: RunningJob) -> int:
    found = json.loads(job.kubectl("get", "ftj", "-o", "json"))["items"]
    reasons = [
        c["reason"] for item in found for c in item.get("status", {}).get("conditions", []) if c["type"] == "Validated"
    ]
    return reasons.count("ProfileNotFound")


@pytest.mark.long
def test_a_stranger_with_our_labels_changes_nothing(start, cluster) -> None:
    """A pod and a Job in another namespace, that say they are this job's and have already succeeded."""
    job = start("train=nap")
    job.reaches("Running")
    (train,) = [item for item in job.children() if item["metadata"]["labels"]["finetuning.dev/stage"] == "train"]
    cluster.kubectl("create", "namespace", "rivals")
    forged = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": train["metadata"]["name"], "namespace": "rivals", "labels": train["metadata"]["labels"]},
        "spec": {
            "backoffLimit": 0,
            "template": {
                "metadata": {"labels": train["spec"]["template"]["metadata"]["labels"]},
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "train", "image": "fake-trainer", "command": ["sh", "-c", "exit 12"]}],
                },
            },
        },
    }
    for label in ("controller-uid", "job-name"):
        for prefix in ("", "batch.kubernetes.io/"):
            forged["spec"]["template"]["metadata"]["labels"].pop(prefix + label, None)
    cluster.kubectl("create", "-f", "-", input=json.dumps(forged))
    try:
        assert job.reaches("Succeeded")["attempt"] == 1
        assert job.doubled() == []
    finally:
        cluster.kubectl("delete", "namespace", "rivals", "--wait=false")


@pytest.mark.long
def test_a_job_that_bears_the_labels_of_another_jobs_children_is_itself_alone(start, cluster, namespace) -> None:
    other = start("train=nap", name="other")
    other.reaches("Running")
    meta = other.children()[-1]["metadata"]
    manifest = make_manifest("bot")
    manifest["metadata"] |= {"labels": meta["labels"], "annotations": {"finetuning.dev/config": "{}"}}
    job = RunningJob(cluster, namespace, manifest)
    job.reaches("Succeeded")
    other.reaches("Succeeded")
    assert [len(one.children()) for one in (job, other)] == [2, 2]
    assert (job.doubled(), other.doubled()) == ([], [])


@pytest.mark.long
@pytest.mark.parametrize(
    "status",
    [
        pytest.param({"phase": "Failed"}, id="phase"),
        pytest.param({"conditions": None}, id="no-conditions"),
        pytest.param({"job": None}, id="the-job-forgotten"),
        pytest.param({"restarts": {"failures": -5}}, id="a-negative-count"),
        pytest.param({"startTime": "9999-12-31T23:59:59Z", "suspendedSeconds": 2**62}, id="times-without-sense"),
        pytest.param(
            {
                "conditions": [
                    {"type": "Mine", "status": "True", "reason": "X", "lastTransitionTime": "2026-11-24T12:00:00Z"}
                ]
            },
            id="a-condition-of-somebody-else",
        ),
    ],
)
def test_a_status_that_was_edited_by_hand_is_no_end_of_the_job(start, status) -> None:
    job = start("train=nap")
    job.reaches("Running")
    job.kubectl("patch", "ftj", "bot", "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
    job.reaches("Succeeded")


@pytest.mark.long
def test_two_default_profiles_are_said_and_jobs_wait_until_there_is_one(start, cluster) -> None:
    profile = {
        "apiVersion": "finetuning.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "spec": {"limits": {"allowedImages": ["*"]}},
    }
    default = {"annotations": {"finetuning.dev/is-default-profile": "true"}}
    for name in ("one", "two"):
        manifest = {**profile, "metadata": {"name": name, **default}}
        cluster.kubectl("apply", "-f", "-", input=json.dumps(manifest))
    try:
        job = start()
        job.until(lambda: job.condition("Validated").get("reason") == "SeveralDefaultProfiles", what="the reason")
        cluster.kubectl("annotate", "ftp", "two", "finetuning.dev/is-default-profile-")
        job.reaches("Succeeded")
    finally:
        cluster.kubectl("delete", "ftp", "one", "two")
