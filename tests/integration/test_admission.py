"""The real API server refuses what the command line refuses, in the same words; and keeps fixed what is fixed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dev.cluster.local import KubectlError, LocalCluster
from finetune_operator.api.constants import PRIORITIES
from finetune_operator.api.job import FineTuneJobSpec, Scheduling
from finetune_operator.api.rules import violations
from tests.unit.rule_cases import AFFINITY, BAD_RULES, BAD_TYPES, GOOD, JSON_SCHEMA, Case, job


def apply(cluster: LocalCluster, manifest: dict[str, Any], namespace: str, *flags: str) -> str:
    return cluster.kubectl("apply", "-n", namespace, "--validate=strict", "-f", "-", *flags, input=json.dumps(manifest))


@pytest.fixture(scope="module")
def anywhere(cluster: LocalCluster) -> str:
    """A namespace for what is only asked and never stored."""
    cluster.kubectl("create", "namespace", "admission")
    return "admission"


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.id)
def test_a_good_manifest_is_admitted(case: Case, cluster: LocalCluster, anywhere: str) -> None:
    apply(cluster, case.manifest, anywhere, "--dry-run=server")


@pytest.mark.parametrize("case", [*BAD_TYPES, *BAD_RULES], ids=lambda case: case.id)
def test_a_bad_manifest_is_refused_and_the_field_is_named(case: Case, cluster: LocalCluster, anywhere: str) -> None:
    with pytest.raises(KubectlError) as refused:
        apply(cluster, case.manifest, anywhere, "--dry-run=server")
    said = str(refused.value)
    assert (case.field or "").rpartition(".")[2] in said
    if case.shared:
        assert case.sentence in said


@pytest.mark.parametrize("case", BAD_RULES, ids=lambda case: case.id)
def test_the_rules_python_twin_says_the_same(case: Case) -> None:
    assert any(case.sentence in message for _, message in violations(case.manifest, in_cluster=True))


BOMB = "\n".join(
    [
        "apiVersion: finetuning.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: bomb}\nspec:\n  a0: &a0 [x]",
        *(f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)),
    ]
)
"""A line a level, and a billion values: what `finetune` says of it is in tests/unit/test_cli_validate.py."""


def test_a_manifest_that_unfolds_without_end_is_refused_unread(cluster: LocalCluster, anywhere: str) -> None:
    with pytest.raises(KubectlError, match="excessive aliasing"):
        cluster.kubectl("apply", "-n", anywhere, "-f", "-", input=BOMB)
    path = f"/apis/finetuning.dev/v1alpha1/namespaces/{anywhere}/finetunejobs"
    code, answer = cluster.api.request("POST", path, BOMB, content_type="application/yaml")
    assert (code, "excessive aliasing" in answer["message"]) == (400, True)


FULL = job(
    {
        "spec.lora": {"rank": 8},
        "spec.hyperparameters": {"epochs": 1},
        "spec.scheduling": {"nodeSelector": {"pool": "a"}, "priorityClass": "low"},
        "spec.lifecycle": {"retries": {"max": 1}},
    }
)
SMALL = job()
HURRIED = job({"spec.scheduling": {"priorityClass": "low", "queuePriority": "low"}})
MEASURED = job({"spec.evaluation": {"metrics": ["jsonSchema"], "jsonSchema": JSON_SCHEMA}})

FIXED = [
    ("method", SMALL, {"spec.method": "Full"}),
    ("model", SMALL, {"spec.model.uri": "hf://organisation/other"}),
    ("optional-field-added", SMALL, {"spec.lora": {"rank": 8}}),
    ("optional-field-removed", FULL, {"spec.lora": None}),
    ("optional-field-changed", FULL, {"spec.hyperparameters": {"epochs": 2}}),
    ("json-schema-changed", MEASURED, {"spec.evaluation": {"jsonSchema": {"required": ["order"]}}}),
    ("json-schema-changed-deep-inside", MEASURED, {"spec.evaluation": {"jsonSchema": {"$defs": {"t": {"x-note": 2}}}}}),
    ("profile-added", SMALL, {"spec.profile": "a100"}),
    ("queue-added", SMALL, {"spec.scheduling": {"queue": "tuning"}}),
    ("node-selector-added", SMALL, {"spec.scheduling": {"nodeSelector": {"pool": "b"}}}),
    ("node-selector-changed", FULL, {"spec.scheduling": {"nodeSelector": {"pool": "b"}}}),
    ("scheduling-removed-with-its-selector", FULL, {"spec.scheduling": None}),
]
FREE = [
    ("retries-changed", FULL, {"spec.lifecycle": {"retries": {"max": 9}}}),
    ("retries-changed-beside-a-json-schema", MEASURED, {"spec.lifecycle": {"retries": {"max": 9}}}),
    ("lifecycle-added", SMALL, {"spec.lifecycle": {"gracePeriodSeconds": 5}}),
    ("lifecycle-removed", FULL, {"spec.lifecycle": None}),
    ("priority-added-where-scheduling-was-absent", SMALL, {"spec.scheduling": {"priorityClass": "high"}}),
    ("queue-priority-added-where-scheduling-was-absent", SMALL, {"spec.scheduling": {"queuePriority": "high"}}),
    ("priority-changed", FULL, {"spec.scheduling": {"priorityClass": "high"}}),
    ("priority-removed", FULL, {"spec.scheduling": {"priorityClass": None}}),
    ("scheduling-removed-with-its-priorities", HURRIED, {"spec.scheduling": None}),
]
OTHER: dict[str, Any] = {
    "method": "LoRA",
    "objective": "SFT",
    "model": {"uri": "hf://organisation/other"},
    "dataset": {"uri": "s3://data/other.jsonl"},
    "output": {"uri": "s3://models/other"},
    "lora": {"rank": 8},
    "quantization": {"type": "nf4"},
    "deepspeed": {"zeroStage": 3},
    "hyperparameters": {"epochs": 1},
    "evaluation": {"everySteps": 5},
    "checkpoint": {"keep": 3},
    "tracking": {"tensorboard": {}},
    "profile": "a100",
    "resources": {"cpu": 4},
    "trainer": {"image": "mine"},
    "podTemplate": {"labels": {"team": "support"}},
    "scheduling.nodeSelector": {"pool": "a"},
    "scheduling.tolerations": [{"operator": "Exists"}],
    "scheduling.affinity": AFFINITY,
    "scheduling.queue": "tuning",
    "scheduling.schedulerName": "volcano",
    "scheduling.topologyKey": "zone",
    "scheduling.runtimeClassName": "nvidia",
    "scheduling.serviceAccountName": "robot",
}
"""Another value of every field that is fixed: of those that a small QLoRA job has not, the first one."""


def change(cluster: LocalCluster, namespace: str, before: dict[str, Any], changes: dict[str, Any]) -> None:
    apply(cluster, before, namespace)
    patch: dict[str, Any] = {"spec": {path.removeprefix("spec."): value for path, value in changes.items()}}
    if "model.uri" in patch["spec"]:
        patch["spec"] = {"model": {"uri": patch["spec"]["model.uri"]}}
    name = before["metadata"]["name"]
    cluster.kubectl("patch", "-n", namespace, "ftj", name, "--type=merge", "-p", json.dumps(patch))


@pytest.mark.parametrize(("before", "changes"), [row[1:] for row in FIXED], ids=[row[0] for row in FIXED])
def test_what_is_fixed_after_creation_stays(before, changes, cluster: LocalCluster, namespace: str) -> None:
    with pytest.raises(KubectlError, match="is fixed after creation: delete the job and create a new one"):
        change(cluster, namespace, before, changes)


@pytest.mark.parametrize(("before", "changes"), [row[1:] for row in FREE], ids=[row[0] for row in FREE])
def test_lifecycle_and_priority_may_change(before, changes, cluster: LocalCluster, namespace: str) -> None:
    change(cluster, namespace, before, changes)


def test_every_field_but_lifecycle_and_priorities_is_in_the_table_of_what_is_fixed() -> None:
    top = {field.alias or name for name, field in FineTuneJobSpec.model_fields.items()}
    below = {field.alias or name for name, field in Scheduling.model_fields.items()}
    assert OTHER.keys() == top - {"lifecycle", "scheduling"} | {f"scheduling.{name}" for name in below - {*PRIORITIES}}


@pytest.fixture(scope="module")
def small(cluster: LocalCluster, anywhere: str) -> str:
    """A job that is there, with nothing in it but what must be."""
    apply(cluster, job({"spec.method": "QLoRA"}, name="small"), anywhere)
    return anywhere


@pytest.mark.parametrize("field", OTHER)
def test_no_field_that_is_fixed_may_come_or_change(field: str, cluster: LocalCluster, small: str) -> None:
    *parents, name = field.split(".")
    changes: dict[str, Any] = {name: OTHER[field]}
    for parent in parents:
        changes = {parent: changes}
    patch = ("--type=merge", "--dry-run=server", "-p", json.dumps({"spec": changes}))
    with pytest.raises(KubectlError, match=f"spec.{field} is fixed after creation"):
        cluster.kubectl("patch", "-n", small, "ftj", "small", *patch)


def test_kubectl_explain_reads_well(cluster: LocalCluster) -> None:
    assert "Rank of the adapter matrices" in cluster.kubectl("explain", "ftj.spec.lora.rank")
    assert "hf://organisation/name" in cluster.kubectl("explain", "ftj.spec.model.uri")


def test_every_field_of_the_spec_is_explained(cluster: LocalCluster) -> None:
    said = cluster.kubectl("explain", "ftj.spec", "--recursive=false")
    for field in ("method", "model", "dataset", "output", "hyperparameters", "evaluation", "lifecycle"):
        assert field in said
    assert "<no description>" not in said


def test_the_table_has_the_columns_that_people_look_for(cluster: LocalCluster, namespace: str) -> None:
    apply(cluster, SMALL, namespace)
    header = cluster.kubectl("get", "ml", "-n", namespace).splitlines()[0].split()
    assert header == ["NAME", "MODEL", "METHOD", "PHASE", "PROGRESS", "LOSS", "ETA", "GPUS", "RESTARTS", "AGE"]
