"""What podTemplate adds to the pods, what it cannot touch, and the profile's under the job's."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.api.rules import PROFILE_RULES, violations
from tests.support.builders import Story, make_profile, make_spec
from tests.unit.test_manifests_of_children import Manifest, built, containers_of, pod_of

ADDED = {
    "labels": {"team": "support", "cost": "1"},
    "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
    "env": [{"name": "NCCL_SOCKET_IFNAME", "value": "eth0"}],
    "volumes": [{"name": "lexicon", "configMap": {"name": "lexicon"}}],
    "volumeMounts": [{"name": "lexicon", "mountPath": "/mnt/lexicon", "readOnly": True}],
    "securityContext": {"runAsUser": 1000650000},
    "imagePullSecrets": [{"name": "registry"}],
}


@pytest.mark.parametrize("stage", ["prepare", "train"])
@pytest.mark.parametrize("where", ["job", "profile"])
def test_all_pods_have_what_is_added_and_keep_what_is_ours(stage, where) -> None:
    told: Manifest = {"podTemplate": ADDED}
    job = built(stage, make_spec(**told)) if where == "job" else built(stage, profile=told)
    plain, pod, meta = built(stage), pod_of(job), job["spec"]["template"]["metadata"]
    assert ADDED["labels"].items() <= meta["labels"].items()
    assert plain["spec"]["template"]["metadata"]["labels"].items() <= meta["labels"].items()
    assert ADDED["annotations"].items() <= meta["annotations"].items()
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["securityContext"] == {**pod_of(plain)["securityContext"], "runAsUser": 1000650000}
    assert pod["volumes"][-1] == ADDED["volumes"][0]
    for container in containers_of(job):
        assert {"name": "NCCL_SOCKET_IFNAME", "value": "eth0"} in container["env"]
        assert container["volumeMounts"][-1] == ADDED["volumeMounts"][0]


def test_what_the_job_says_goes_before_what_its_profile_says_name_by_name() -> None:
    profile = {"env": [{"name": "A", "value": "profile"}, {"name": "B", "value": "profile"}], "labels": {"x": "p"}}
    own = {"env": [{"name": "A", "value": "job"}], "labels": {"x": "j"}}
    job = built(spec=make_spec(podTemplate=own), profile={"podTemplate": profile})
    env = {item["name"]: item.get("value") for item in containers_of(job)[0]["env"]}
    assert (env["A"], env["B"]) == ("job", "profile")
    assert job["spec"]["template"]["metadata"]["labels"]["x"] == "j"


def test_a_mount_of_no_volume_is_told_before_anything_is_created() -> None:
    mount = {"volumeMounts": [{"name": "shared", "mountPath": "/mnt/shared"}]}
    alone = Story(make_spec(podTemplate=mount))
    assert alone.sees().create is None
    assert alone.condition("Validated") == ("False", "InvalidSpec")
    volume = {"volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}]}
    with_profile = Story(make_spec(podTemplate=mount), make_profile(podTemplate=volume))
    assert with_profile.sees().create is not None


BAD: list[tuple[str, dict[str, Any]]] = [
    ("our-label", {"labels": {"finetuning.dev/job": "another"}}),
    ("manager-label", {"labels": {"app.kubernetes.io/managed-by": "me"}}),
    ("queue-label", {"labels": {"kueue.x-k8s.io/queue-name": "vip"}}),
    ("our-annotation", {"annotations": {"finetuning.dev/config": "{}"}}),
    ("apparmor", {"annotations": {"container.apparmor.security.beta.kubernetes.io/train": "unconfined"}}),
    ("our-variable", {"env": [{"name": "FINETUNE_CONFIG", "value": "/mnt/x"}]}),
    ("other-code", {"env": [{"name": "PYTHONPATH", "value": "/mnt/x"}]}),
    ("preload", {"env": [{"name": "LD_PRELOAD", "value": "/mnt/x.so"}]}),
    ("a-secrets-variable", {"env": [{"name": "MODEL_HF_TOKEN", "value": "x"}]}),
    ("two-values", {"env": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]}),
    ("no-source", {"env": [{"name": "A", "valueFrom": {}}]}),
    ("our-volume", {"volumes": [{"name": "cache", "emptyDir": {}}]}),
    ("a-claim-of-ours", {"volumes": [{"name": "claim-0", "emptyDir": {}}]}),
    ("two-kinds", {"volumes": [{"name": "a", "emptyDir": {}, "secret": {"secretName": "x"}}]}),
    ("no-kind", {"volumes": [{"name": "a"}]}),
    ("out-of-mnt", {"volumeMounts": [{"name": "a", "mountPath": "/mnt/../etc"}]}),
]


@pytest.mark.parametrize("template", [row[1] for row in BAD], ids=[row[0] for row in BAD])
def test_a_profile_is_held_to_the_same_rules(template) -> None:
    profile = {"metadata": {"name": "pool"}, "spec": {"podTemplate": template}}
    assert list(violations(profile, in_cluster=True, rules=PROFILE_RULES))
    assert not list(violations({"spec": {"podTemplate": ADDED}}, in_cluster=True, rules=PROFILE_RULES))


def test_a_profile_has_one_place_for_its_cache() -> None:
    profile = {"spec": {"cache": {"claimName": "models", "hostPath": "/var/models"}}}
    ((field, message),) = violations(profile, in_cluster=True, rules=PROFILE_RULES)
    assert (field, message.partition(":")[0]) == ("spec.cache", "claimName and hostPath name two places for one cache")
