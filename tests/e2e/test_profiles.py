"""What profiles and nodes say about a job's pods, on a real control plane and under restricted Pod Security."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dev.cluster.local import KubectlError, LocalCluster
from dev.operator import LocalOperator
from tests.support.jobs import RunningJob, make_manifest

Start = Callable[..., RunningJob]
LEXICON = {
    "labels": {"team": "support"},
    "env": [{"name": "LEXICON", "value": "/mnt/lexicon/words"}],
    "volumes": [{"name": "lexicon", "configMap": {"name": "lexicon"}}],
    "volumeMounts": [{"name": "lexicon", "mountPath": "/mnt/lexicon"}],
    "securityContext": {"supplementalGroups": [3000]},
}
PRODUCT, MEMORY = "nvidia.com/gpu.product", "nvidia.com/gpu.memory"


@pytest.fixture
def start(cluster: LocalCluster, namespace: str) -> Start:
    """Start a job that uses the profile of its own namespace."""
    return lambda **spec: RunningJob(cluster, namespace, make_manifest("bot", profile=namespace, **spec))


@pytest.fixture
def has_profile(cluster: LocalCluster, namespace: str) -> Iterator[Callable[..., None]]:
    """Make a profile; the limit of images lets the fake trainer through."""

    def make(**spec: Any) -> None:
        body = {"apiVersion": "finetuning.dev/v1alpha1", "kind": "FineTuneProfile", "metadata": {"name": namespace}}
        spec = {"namespaces": [namespace], "limits": {"allowedImages": ["fake-*"]}, **spec}
        cluster.kubectl("apply", "-f", "-", input=json.dumps({**body, "spec": spec}))

    yield make
    cluster.kubectl("delete", "ftp", namespace)


@pytest.mark.usefixtures("operator")
def test_what_a_template_adds_runs_under_restricted_pod_security(start, has_profile, cluster, namespace) -> None:
    cluster.kubectl("label", "ns", namespace, "pod-security.kubernetes.io/enforce=restricted")
    cluster.kubectl("create", "configmap", "lexicon", "--from-literal=words=yes", "-n", namespace)
    has_profile(podTemplate=LEXICON, defaults={"hyperparameters": {"seed": 7}})
    job = start()
    status = job.reaches("Succeeded")
    assert status["resolved"]["defaults"] == {"hyperparameters": {"seed": 7}}
    assert {pod["metadata"]["labels"]["team"] for pod in job.children("pods")} == {"support"}


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(
    ("script", "ends", "says"),
    [("", "Succeeded", "the outputs are at"), ("prepare=exit-12", "Failed", "told to end with 12")],
    ids=["good data", "bad data"],
)
def test_the_training_pod_prepares_where_the_profile_says_so(start, has_profile, script, ends, says) -> None:
    has_profile(prepare={"mode": "InPod"})
    job = start(dataset={"uri": f"s3://fake/{script or 'all=ok'}"})
    status = job.reaches(ends)
    assert says in job.condition("Ready")["message"]
    assert ("dataset" in status) == (ends == "Succeeded")
    (one,) = job.children()
    assert [item["name"] for item in one["spec"]["template"]["spec"]["initContainers"]] == ["prepare", "fetch"]


@pytest.mark.usefixtures("operator")
def test_the_training_pod_prepares_where_a_policy_takes_only_jobs_of_a_queue(start, has_profile, queues_only) -> None:
    has_profile()
    job = start()
    job.reaches("Succeeded")
    (one,) = job.children()
    assert [item["name"] for item in one["spec"]["template"]["spec"]["initContainers"]] == ["prepare", "fetch"]
    assert job.events().count("JobRefused") == 1


@pytest.fixture
def queues_only(cluster: LocalCluster, namespace: str) -> Iterator[None]:
    """Have the API server refuse prepare's Jobs in this namespace."""
    where = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    check = {"expression": "!object.metadata.name.endsWith('-prep')", "message": "every Job names a queue"}
    policy = {"matchConstraints": {"resourceRules": [rule], **where}, "validations": [check]}
    binding = {"policyName": namespace, "validationActions": ["Deny"]}
    for kind, spec in (("", policy), ("Binding", binding)):
        body = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": f"ValidatingAdmissionPolicy{kind}"}
        cluster.kubectl("apply", "-f", "-", input=json.dumps({**body, "metadata": {"name": namespace}, "spec": spec}))
    until_refused(cluster, namespace)
    yield
    for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
        cluster.kubectl("delete", kind, namespace)


def until_refused(cluster: LocalCluster, namespace: str) -> None:
    """The API server takes a policy up some moments after it was written."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            cluster.kubectl("create", "job", "x-prep", "--image=x", "--dry-run=server", "-n", namespace)
        except KubectlError:
            return
        time.sleep(0.2)
    raise TimeoutError


@pytest.mark.usefixtures("operator")
def test_a_claim_that_is_not_there_is_said_before_a_gpu_is_asked_for(start, has_profile) -> None:
    has_profile(cache={"claimName": "models"})
    job = start()
    job.until(lambda: job.condition("Prepared").get("reason") == "Unschedulable", what="the missing claim")
    assert 'persistentvolumeclaim "models" not found' in job.condition("Ready")["message"]
    assert len(job.children()) == 1


def test_the_nodes_labels_say_what_a_gpu_is(start, has_profile, cluster, operator: LocalOperator) -> None:
    has_profile()
    with labelled(cluster, {PRODUCT: "NVIDIA-L4", MEMORY: "23034"}):
        operator.kill()
        operator.start()  # nodes are listed at the start, and every ten minutes
        job = start(resources={"gpusPerNode": 1, "gpuType": "NVIDIA-L4"})
        status = job.reaches("Succeeded")
    told = {"type": "NVIDIA-L4", "memoryBytes": 23034 << 20, "because": f"the nodes' label {MEMORY}"}
    assert status["resolved"]["gpu"] == told
    assert job.children()[-1]["spec"]["template"]["spec"]["nodeSelector"] == {PRODUCT: "NVIDIA-L4"}


@contextmanager
def labelled(cluster: LocalCluster, labels: dict[str, str]) -> Iterator[None]:
    """Label the node for a while, as NVIDIA's feature discovery does."""
    cluster.kubectl("label", "node", cluster.node_names[0], *(f"{name}={value}" for name, value in labels.items()))
    try:
        yield
    finally:
        cluster.kubectl("label", "node", cluster.node_names[0], *(f"{name}-" for name in labels))
