"""The ValidatingAdmissionPolicies, as the real API server evaluates them: who may do what, and what is said."""

import json
import time

import pytest

from dev.cluster.local import KubectlError, LocalCluster
from tests.support.manifests import KUSTOMIZE, chart_objects, kustomize_objects

SETTINGS = tuple(f"policies.{name}=true" for name in ("profileUse", "ownImage", "ownServiceAccount", "requiredQueue"))
AUTHOR = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "author"},
    "rules": [{"apiGroups": ["finetuning.dev"], "resources": ["finetunejobs"], "verbs": ["create", "get", "patch"]}],
}
USE = {"apiGroups": ["finetuning.dev"], "resources": ["finetuneprofiles"], "resourceNames": ["small"], "verbs": ["use"]}
USE_SMALL = {**AUTHOR, "metadata": {"name": "use-small"}, "rules": [USE]}
ACCOUNT = {"queue": "tuning", "serviceAccountName": "robot"}
ANA = ("--as=ana", "-n", "team-a")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The CRDs and all policies; ana may make jobs in two namespaces, and use the profile `small` in one of them."""
    with LocalCluster(tmp_path_factory.mktemp("policies"), backend="none", with_s3=False) as cluster:
        cluster.kubectl("apply", "--server-side", "-k", str(KUSTOMIZE / "crd"))
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all")
        for role in (AUTHOR, USE_SMALL):
            cluster.kubectl("apply", "-f", "-", input=json.dumps(role))
        for namespace, roles in (("team-a", ("author", "use-small")), ("team-b", ("author",))):
            cluster.kubectl("create", "namespace", namespace)
            for role in roles:
                cluster.kubectl("create", "rolebinding", role, f"--clusterrole={role}", "--user=ana", "-n", namespace)
        cluster.kubectl("apply", "-k", str(KUSTOMIZE / "policies"))
        wait_until_enforced(cluster)
        yield cluster


def wait_until_enforced(cluster):
    """The API server takes a policy up some moments after it was written."""
    deadline = time.monotonic() + 30
    refused = {
        "own-image": {"trainer": {"image": "mine"}},
        "own-service-account": {"scheduling": ACCOUNT},
        "queue": {"scheduling": {}},
        "use": {"profile": "large"},
    }
    for changes in refused.values():
        while answer(cluster, job(**changes), *ANA) == "created":
            assert time.monotonic() < deadline, changes
            time.sleep(0.2)


def job(**changes):
    spec = {
        "method": "LoRA",
        "model": {"uri": "s3://models/base"},
        "dataset": {"uri": "s3://data/train.jsonl"},
        "output": {"uri": "s3://models/out"},
        "scheduling": {"queue": "tuning"},
        **changes,
    }
    meta = {"name": "bot"}
    return {"apiVersion": "finetuning.dev/v1alpha1", "kind": "FineTuneJob", "metadata": meta, "spec": spec}


def answer(cluster, manifest, *flags):
    try:
        cluster.kubectl("create", "--dry-run=server", "-f", "-", *flags, input=json.dumps(manifest))
    except KubectlError as error:
        return str(error)
    return "created"


@pytest.mark.parametrize(
    ("changes", "flags", "said"),
    [
        pytest.param({}, ANA, "created", id="no profile: the default one is everybody's"),
        pytest.param({"profile": "small"}, ANA, "created", id="a profile that ana may use"),
        pytest.param({"profile": "large"}, ANA, "ana may not use the FineTuneProfile large", id="one that she may not"),
        pytest.param({"profile": "small"}, ("--as=ana", "-n", "team-b"), "in namespace team-b", id="elsewhere"),
        pytest.param({"profile": "large"}, ("-n", "team-b"), "created", id="an administrator may use all"),
        pytest.param({"trainer": {"image": "mine"}}, ANA, "take the image of their profile", id="an own image"),
        pytest.param({"trainer": {"imagePullPolicy": "Always"}}, ANA, "created", id="a trainer without an image"),
        pytest.param({"scheduling": ACCOUNT}, ANA, "take the one of their profile", id="a service account of its own"),
        pytest.param({"scheduling": {}}, ANA, "jobs of this cluster wait in a queue", id="no queue"),
    ],
)
def test_who_may_create_what(cluster, changes, flags, said):
    assert said in answer(cluster, job(**changes), *flags)


def test_who_may_not_use_a_profile_may_still_suspend_the_job(cluster):
    cluster.kubectl("create", "-f", "-", "-n", "team-b", input=json.dumps(job(profile="large")))
    patch = json.dumps({"spec": {"lifecycle": {"suspend": True}}})
    cluster.kubectl("patch", "ftj", "bot", "--type=merge", "-p", patch, "--as=ana", "-n", "team-b")


def test_chart_and_manifests_have_the_same_policies_and_the_chart_none_by_default():
    always = chart_objects()
    added = {key: item for key, item in chart_objects(*SETTINGS).items() if key not in always}
    assert added == kustomize_objects(KUSTOMIZE / "policies")
    assert len(added) == 8
