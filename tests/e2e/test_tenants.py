"""Two tenants of one cluster: what one tries against the other, on a real control plane under the shipped rights.

More of it stands where its parts are: forged tokens in tests/integration/test_status_server.py, forged labels and
owners in tests/faults/test_strangers.py and tests/unit/test_reconciler.py, names of other namespaces in
tests/unit/rule_cases.py, other tenants' prefixes in tests/unit/test_decide.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dev.cluster.local import KubectlError, LocalCluster
from tests.support.jobs import RunningJob, make_manifest, new_namespace

pytestmark = pytest.mark.usefixtures("operator")
USER_RIGHTS = ("--verb=get,list,watch,create,delete", "--resource=finetunejobs.finetuning.dev")
"""What docs/operations.md says that a user needs."""
PROMPT = "x" * 4000


@pytest.fixture(scope="module")
def neighbour(cluster: LocalCluster) -> Iterator[str]:
    """A namespace with a Secret, a claim and a profile of its own."""
    with new_namespace(cluster) as name:
        cluster.kubectl("-n", name, "create", "secret", "generic", "s3", "--from-literal=AWS_ACCESS_KEY_ID=x")
        size = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}, "spec": size}
        cluster.kubectl("-n", name, "create", "-f", "-", input=json.dumps(claim))
        cluster.kubectl("-n", name, "create", "serviceaccount", "robot")
        yield name


@pytest.fixture
def start(cluster: LocalCluster, namespace: str) -> Callable[..., RunningJob]:
    """Start a job of the tenant who tries."""
    return lambda script="", name="bot", **spec: RunningJob(cluster, namespace, make_manifest(name, script, **spec))


@pytest.mark.usefixtures("neighbour")
@pytest.mark.parametrize(
    ("spec", "reason", "said"),
    [
        pytest.param(
            {"output": {"uri": "s3://outputs/out", "secretRef": {"name": "s3"}}},
            "ContainerConfig",
            'secrets "s3" not found',
            id="Secret",
        ),
        pytest.param(
            {"model": {"uri": "pvc://models/base"}},
            "Unschedulable",
            'persistentvolumeclaim "models" not found',
            id="claim",
        ),
        pytest.param(
            {"podTemplate": {"volumes": [{"name": "theirs", "secret": {"secretName": "s3"}}]}},
            "MountFailed",
            'secrets "s3" not found',
            id="Secret as a volume",
        ),
        pytest.param(
            {"scheduling": {"serviceAccountName": "robot"}},
            "PodsRefused",
            'serviceaccount "robot" not found',
            id="ServiceAccount",
        ),
    ],
)
def test_what_a_job_names_is_looked_for_in_its_own_namespace_alone(start, spec, reason, said) -> None:
    job = start(**spec)
    job.until(lambda: job.condition("Prepared").get("reason") == reason, what=reason)
    assert said in job.condition("Ready")["message"]


def test_the_profile_of_another_namespace_starts_no_pod_and_tells_nothing(start, cluster, neighbour) -> None:
    name = f"of-{neighbour}"
    profile = {"apiVersion": "finetuning.dev/v1alpha1", "kind": "FineTuneProfile", "metadata": {"name": name}}
    theirs = {"namespaces": [neighbour], "storage": {"endpoint": "https://store.internal", "secretName": "s3"}}
    cluster.kubectl("apply", "-f", "-", input=json.dumps({**profile, "spec": theirs}))
    try:
        job = start(profile=name)
        job.until(lambda: job.condition("Validated").get("reason") == "ProfileRefused", what="refusal")
        assert job.children() == []
        assert "store.internal" not in json.dumps(job.status)
    finally:
        cluster.kubectl("delete", "ftp", name)


def test_two_jobs_of_one_name_know_nothing_of_each_other(start, cluster, neighbour) -> None:
    theirs = RunningJob(cluster, neighbour, make_manifest("bot", "train=post"))
    job = start("train=run")
    theirs.until(lambda: theirs.status.get("progress", {}).get("step") == 7, what="progress")
    job.reaches("Running")
    assert "progress" not in job.status
    job.delete()
    assert theirs.status["phase"] == "Running"
    assert [len(theirs.children(kind)) for kind in ("jobs", "pods")] == [2, 2]


@pytest.mark.parametrize("what", ["finetunejobs.finetuning.dev", "pods --subresource=log", "secrets", "jobs.batch"])
def test_who_may_make_jobs_in_one_namespace_may_nothing_in_another(cluster, namespace, neighbour, what) -> None:
    cluster.kubectl("create", "role", "tuner", *USER_RIGHTS, "-n", namespace)
    cluster.kubectl("create", "rolebinding", "ana", "--role=tuner", "--user=ana", "-n", namespace)
    answers = [may(cluster, "get", what, place) for place in (namespace, neighbour)]
    assert answers == [what == "finetunejobs.finetuning.dev", False]


def may(cluster: LocalCluster, verb: str, what: str, namespace: str) -> bool:
    try:
        return cluster.kubectl("auth", "can-i", verb, *what.split(), "--as=ana", "-n", namespace).strip() == "yes"
    except KubectlError:  # it ends with 1 for a no
        return False


def crowd(count: int) -> list[dict[str, Any]]:
    """Jobs that wait for a profile, and large ones whose pods are refused."""
    samples = {"samples": {"prompts": [PROMPT] * 12, "everySteps": 5}}
    bad = [make_manifest(f"bad-{number}", profile="there-is-none") for number in range(count // 2)]
    return bad + [make_manifest(f"huge-{number}", evaluation=samples) for number in range(count // 2)]


def test_a_hundred_bad_or_huge_jobs_hold_up_nobody_elses(start, cluster) -> None:
    items = {"kind": "List", "apiVersion": "v1", "items": crowd(100)}
    with new_namespace(cluster) as crowded:
        cluster.kubectl("create", "quota", "none", "--hard=pods=0", "-n", crowded)  # they are to be read, not run
        cluster.kubectl("create", "-n", crowded, "-f", "-", input=json.dumps(items))
        waited = until_it_has_a_job(start(name="among"))
        cluster.kubectl("delete", "ftj", "--all", "-n", crowded, "--wait=false")
    assert waited < 15.0


def until_it_has_a_job(job: RunningJob) -> float:
    began = time.monotonic()
    job.until(lambda: job.children() != [], what="a Job")
    return time.monotonic() - began
