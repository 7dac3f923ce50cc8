"""The Jobs that are built: what they ask for, what they may not do, and what the trainer reads from them."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_contract.paths import ENV_DEEPSPEED_CONFIG, ENV_RENDEZVOUS
from finetune_contract.run_config import RunConfig
from finetune_operator.api.constants import MAX_NAME_LENGTH, progress_audience
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.profile import FineTuneProfileSpec
from finetune_operator.api.quantities import quantity
from finetune_operator.api.status import FineTuneJobStatus, GpuStatus, ResolvedStatus
from finetune_operator.builders.job import build_job, owner_reference
from finetune_operator.builders.names import child_name
from finetune_operator.builders.placement import build_pod_group
from finetune_operator.builders.service import build_service
from tests.support.builders import UID, make_job, make_spec
from tests.unit.rule_cases import AFFINITY, REQUIRED

Manifest = dict[str, Any]


def built(
    stage: Any = "train",
    spec: Manifest | None = None,
    profile: Manifest | None = None,
    status: FineTuneJobStatus | None = None,
    **changes: Any,
) -> Manifest:
    fields = {"stage": stage, "run": 1, "attempt": 1, "image": "trainer:1", "collect": False,
              "progress_url": "https://operator/x", "progress_ca": "CA", **changes}  # fmt: skip
    spec = spec or make_spec()
    return build_job(
        make_job(spec, status),
        FineTuneJobSpec.model_validate(spec),
        FineTuneProfileSpec.model_validate(profile or {}),
        **fields,
    )


def pod_of(manifest: Manifest) -> Manifest:
    return manifest["spec"]["template"]["spec"]


def containers_of(manifest: Manifest) -> list[Manifest]:
    pod = pod_of(manifest)
    return [*pod.get("initContainers", []), *pod["containers"]]


def config_of(manifest: Manifest) -> RunConfig:
    """Read what the trainer reads."""
    annotations = manifest["spec"]["template"]["metadata"]["annotations"]
    return RunConfig.model_validate_json(annotations["finetuning.dev/config"])


def test_only_the_training_container_asks_for_gpus() -> None:
    asked = {
        container["name"]: container.get("resources", {}).get("limits", {}).get("nvidia.com/gpu")
        for stage in ("prepare", "train")
        for container in containers_of(built(stage))
    }
    assert asked == {"prepare": None, "fetch": None, "train": "1"}


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        ({}, {"emptyDir": {}}),
        ({"claimName": "models"}, {"persistentVolumeClaim": {"claimName": "models"}}),
        ({"hostPath": "/var/models"}, {"hostPath": {"path": "/var/models", "type": "Directory"}}),
    ],
    ids=["own disk", "claim", "folder of the node"],
)
def test_models_are_kept_where_the_profile_says(cache: Manifest, volume: Manifest) -> None:
    volumes = pod_of(built(profile={"cache": cache}))["volumes"]
    assert [one for one in volumes if one["name"] == "cache"] == [{"name": "cache", **volume}]


def test_the_trainer_is_told_what_the_cache_may_take() -> None:
    assert config_of(built(profile={"cache": {"claimName": "models", "maxSize": "2Gi"}})).cache_bytes == 2 << 30


def test_only_the_training_container_has_the_port_that_is_scraped() -> None:
    ports = {
        container["name"]: [port["name"] for port in container.get("ports", [])]
        for stage in ("prepare", "train")
        for container in containers_of(built(stage))
    }
    assert ports == {"prepare": [], "fetch": [], "train": ["metrics"]}
    assert not containers_of(built(collect=True))[0].get("ports")


def test_collect_rereads_the_manifest_without_a_gpu_and_without_the_model() -> None:
    (container,) = containers_of(built(collect=True))
    assert container["command"][-1] == "collect"
    assert "nvidia.com/gpu" not in container["resources"].get("limits", {})


def test_pods_are_restricted() -> None:
    manifest = built()
    pod = pod_of(manifest)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in containers_of(manifest):
        context = container["securityContext"]
        assert context == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_configuration_and_ca_come_in_annotations_and_no_config_map_is_needed() -> None:
    manifest = built()
    volumes = {volume["name"]: volume for volume in pod_of(manifest)["volumes"]}
    items = volumes["config"]["downwardAPI"]["items"]
    assert [item["fieldRef"]["fieldPath"] for item in items] == [
        "metadata.annotations['finetuning.dev/config']",
        "metadata.annotations['finetuning.dev/progress-ca']",
    ]
    assert manifest["spec"]["template"]["metadata"]["annotations"]["finetuning.dev/progress-ca"] == "CA"
    assert "configMap" not in str(manifest)


def test_what_a_template_says_in_our_place_does_not_count() -> None:
    """The API server refuses it; an older CRD, or a profile that was stored before the rule, may not have."""
    ours, mine = built(), {"finetuning.dev/stage": "prepare", "finetuning.dev/job-uid": "x", "team": "support"}
    added = {"labels": mine, "annotations": {"finetuning.dev/config": "{}", "finetuning.dev/progress-ca": "x"}}
    for spec, profile in ((make_spec(podTemplate=added), {}), (make_spec(), {"podTemplate": added})):
        meta, expected = (job["spec"]["template"]["metadata"] for job in (built("train", spec, profile), ours))
        assert meta == {**expected, "labels": {**expected["labels"], "team": "support"}}


def test_the_only_token_is_bound_to_this_job_by_its_audience() -> None:
    volumes = pod_of(built())["volumes"]
    tokens = [s["serviceAccountToken"] for v in volumes for s in v.get("projected", {}).get("sources", [])]
    assert [token["audience"] for token in tokens] == [progress_audience(UID)]


def test_one_attempt_is_one_set_of_pods_and_its_exit_code_stays_in_the_job() -> None:
    spec = built()["spec"]
    assert (spec["backoffLimit"], spec["podReplacementPolicy"]) == (0, "Failed")
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["FailJob", "FailJob"]
    assert "ttlSecondsAfterFinished" not in spec


def test_the_judges_key_comes_under_a_prefix_of_its_own_to_prepare_as_well() -> None:
    """So that a missing Secret shows before a GPU is asked for; the store's credentials never stand in for it."""
    judge = {"endpoint": "https://judge.example.com/v1", "model": "m"}
    for stage in ("prepare", "train"):
        for ref, expected in (({"secretRef": {"name": "llm"}}, ["llm"]), ({}, [])):
            spec = make_spec(evaluation={"judge": {**judge, **ref}})
            for container in containers_of(built(stage, spec, {"storage": {"secretName": "team-s3"}})):
                found = [each["secretRef"]["name"] for each in container["envFrom"] if each["prefix"] == "JUDGE_"]
                assert found == expected


def test_a_deepspeed_configuration_is_read_where_it_is_checked_and_used() -> None:
    """By prepare as well: one that is missing or contradicts the job shows before a GPU is asked for."""
    spec = make_spec(
        method="Full", deepspeed={"zeroStage": 2, "configMapRef": {"name": "team", "key": "ds.json"}}, lora=None
    )
    found = {
        container["name"]: [item["valueFrom"] for item in container["env"] if item["name"] == ENV_DEEPSPEED_CONFIG]
        for stage in ("prepare", "train")
        for container in containers_of(built(stage, spec))
    }
    source = {"configMapKeyRef": {"name": "team", "key": "ds.json"}}
    assert found == {"prepare": [source], "fetch": [], "train": [source]}


def test_several_pods_are_one_job_and_find_each_other_by_name() -> None:
    manifest = built(spec=make_spec(resources={"nodes": 2, "gpusPerNode": 4}))
    service = build_service(make_job())
    assert (manifest["spec"]["completions"], manifest["spec"]["parallelism"]) == (2, 2)
    assert pod_of(manifest)["subdomain"] == service["metadata"]["name"]
    labels = manifest["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    (meeting,) = [item["value"] for item in containers_of(manifest)[-1]["env"] if item["name"] == ENV_RENDEZVOUS]
    assert meeting == f"{manifest['metadata']['name']}-0.{service['metadata']['name']}"
    config = config_of(manifest)
    assert (config.device.nodes, config.device.gpus, config.device.ranks) == (2, 4, 8)


@pytest.mark.parametrize("changes", [{"stage": "prepare"}, {"collect": True}], ids=["prepare", "collect"])
def test_what_needs_no_gpu_is_one_pod(changes: Manifest) -> None:
    manifest = built(spec=make_spec(resources={"nodes": 2}), **changes)
    assert manifest["spec"]["completions"] == 1
    assert "subdomain" not in pod_of(manifest)


def test_secrets_come_by_reference_each_use_under_its_own_prefix() -> None:
    tracking = {"wandb": {"project": "support"}, "secretRef": {"name": "wandb"}}
    spec = make_spec(output={"uri": "s3://models/out", "secretRef": {"name": "out"}}, tracking=tracking)
    for container in containers_of(built("prepare", spec, {"storage": {"secretName": "team-s3"}})):
        assert container["envFrom"] == [
            {"prefix": "MODEL_", "secretRef": {"name": "team-s3"}},
            {"prefix": "DATASET_", "secretRef": {"name": "team-s3"}},
            {"prefix": "OUTPUT_", "secretRef": {"name": "out"}},
            {"prefix": "TRACKING_", "secretRef": {"name": "wandb"}},
        ]


@pytest.mark.parametrize(("own", "secret"), [({"secretRef": {"name": "hub"}}, "hub"), ({}, "out")])
def test_the_push_to_the_hub_has_a_token_of_its_own_or_the_output_s(own: Manifest, secret: str) -> None:
    hub = {"repo": "org/name", **own}
    spec = make_spec(output={"uri": "s3://models/out", "secretRef": {"name": "out"}, "hub": hub})
    for container in containers_of(built("train", spec)):
        assert {"prefix": "HUB_", "secretRef": {"name": secret}} in container["envFrom"]


def test_the_trainer_reads_back_what_the_operator_wrote() -> None:
    spec = make_spec(lora={"rank": 8}, lifecycle={"retries": {"max": 1}})
    resolved = ResolvedStatus(config_hash="h", image="i", gpus=1, gpu=GpuStatus(type="H100", memory_bytes=80 * 1024**3))
    config = config_of(built(spec=spec, status=FineTuneJobStatus(resolved=resolved), attempt=3))
    assert (config.job.attempt, config.spec.lora and config.spec.lora.rank) == (3, 8)
    assert (config.device.gpu_type, config.device.gpu_memory_bytes) == ("H100", 80 * 1024**3)


def test_a_claim_is_mounted_once_and_prepare_goes_where_train_can_follow() -> None:
    spec = make_spec(
        model={"uri": "pvc://shared/models/base"},
        dataset={"uri": "pvc://shared/data"},
        scheduling={"nodeSelector": {"zone": "a"}},
    )
    pod = pod_of(built("prepare", spec))
    assert [v["name"] for v in pod["volumes"] if v.get("persistentVolumeClaim")] == ["claim-0"]
    assert pod["nodeSelector"] == {"zone": "a"}


@pytest.mark.parametrize(
    ("profile", "template"),
    [
        ({"cache": {"claimName": "models"}}, {}),
        ({}, {"volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "b"}}]}),
    ],
    ids=["cache", "podTemplate"],
)
def test_any_claim_binds_where_train_can_follow(profile: Manifest, template: Manifest) -> None:
    spec = make_spec(scheduling={"nodeSelector": {"zone": "a"}}, podTemplate=template)
    assert pod_of(built("prepare", spec, profile))["nodeSelector"] == {"zone": "a"}


def test_prepare_without_a_claim_goes_anywhere() -> None:
    assert "nodeSelector" not in pod_of(built("prepare", make_spec(scheduling={"nodeSelector": {"gpu": "h100"}})))


def test_pods_leave_a_lost_node_within_the_profiles_time() -> None:
    tolerations = pod_of(built(profile={"notReadyTolerationSeconds": 7}))["tolerations"]
    assert [(t["key"], t["tolerationSeconds"]) for t in tolerations] == [
        ("node.kubernetes.io/not-ready", 7),
        ("node.kubernetes.io/unreachable", 7),
    ]


def test_the_longest_name_still_fits_a_pods_hostname() -> None:
    name = child_name("a" * MAX_NAME_LENGTH, UID, run=99, attempt=9999, stage="prepare")
    assert len(f"{name}-0") <= 63


@pytest.mark.parametrize(
    ("text", "number"),
    [("80Gi", 80 * 2**30), ("500M", 500 * 10**6), (1024, 1024), ("1.5Gi", 3 * 2**29), ("2500m", 2.5)],
)
def test_quantities_are_numbers(text: str | int, number: float) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize(("cpu", "threads"), [("4", "4"), ("2500m", "2"), ("500m", "1"), (None, None)])
def test_a_pod_starts_no_more_threads_than_it_asks_for_cpus(cpu: str | None, threads: str | None) -> None:
    spec = make_spec(resources={"cpu": cpu}) if cpu else make_spec()
    for container in containers_of(built(spec=spec)):
        assert {item["name"]: item["value"] for item in container["env"]}.get("OMP_NUM_THREADS") == threads


# Kueue.


def test_a_queued_training_job_is_created_suspended_with_the_labels_of_its_queue_on_the_job_alone() -> None:
    queued = built(spec=make_spec(scheduling={"queue": "tuning", "queuePriority": "high"}))
    asked = {"kueue.x-k8s.io/queue-name": "tuning", "kueue.x-k8s.io/priority-class": "high"}
    assert asked.items() <= queued["metadata"]["labels"].items()
    assert queued["spec"]["suspend"] is True
    assert not asked.keys() & queued["spec"]["template"]["metadata"]["labels"].keys()


@pytest.mark.parametrize("changes", [{"stage": "prepare"}, {"collect": True}], ids=["prepare", "collect"])
def test_what_asks_for_no_gpu_waits_in_no_queue_unless_the_profile_says_so(changes) -> None:
    spec = make_spec(scheduling={"queue": "tuning"})
    assert "suspend" not in built(spec=spec, **changes)["spec"]
    told = built(spec=spec, profile={"prepare": {"queue": "cpu"}}, **changes)
    assert (told["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], told["spec"]["suspend"]) == ("cpu", True)


# Where the pods of one attempt go together.


def of_two_nodes(**scheduling: Any) -> Manifest:
    return make_spec(resources={"nodes": 2}, scheduling=scheduling)


def test_volcano_makes_the_group_from_an_annotation_of_the_job() -> None:
    job = built(spec=of_two_nodes(schedulerName="volcano"))
    assert job["metadata"]["annotations"] == {"scheduling.volcano.sh/group-min-member": "2"}
    assert pod_of(job)["schedulerName"] == "volcano"


def test_coscheduling_finds_its_group_by_a_label_and_the_group_counts_all_nodes() -> None:
    asked = of_two_nodes(schedulerName="scheduler-plugins-scheduler")
    job, spec = built(spec=asked), FineTuneJobSpec.model_validate(asked)
    name = job["metadata"]["name"]
    group = build_pod_group(make_job(asked), spec, name=name, owner=owner_reference(make_job(asked)))
    assert job["spec"]["template"]["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] == name
    assert (group["metadata"]["name"], group["spec"]) == (name, {"minMember": 2})
    assert group["metadata"]["ownerReferences"][0]["uid"] == UID


@pytest.mark.parametrize("scheduler", ["volcano", "scheduler-plugins-scheduler"])
@pytest.mark.parametrize("changes", [{"spec": {"nodes": 1}}, {"stage": "prepare"}], ids=["one node", "prepare"])
def test_one_pod_is_no_gang(scheduler, changes) -> None:
    nodes = changes.get("spec", {}).get("nodes", 2)
    spec = make_spec(resources={"nodes": nodes}, scheduling={"schedulerName": scheduler})
    job = built(changes.get("stage", "train"), spec)
    assert "annotations" not in job["metadata"]
    assert "scheduling.x-k8s.io/pod-group" not in job["spec"]["template"]["metadata"]["labels"]


def test_kai_gets_its_name_alone() -> None:
    job = built(spec=of_two_nodes(schedulerName="kai-scheduler"))
    assert (pod_of(job)["schedulerName"], "annotations" in job["metadata"]) == ("kai-scheduler", False)


def test_pods_share_a_topology_domain_by_their_affinity_to_each_other() -> None:
    job = built(spec=of_two_nodes(topologyKey="example.com/rack"), attempt=3)
    (term,) = pod_of(job)["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert term["topologyKey"] == "example.com/rack"
    assert term["labelSelector"]["matchLabels"].items() <= labels.items()
    assert term["labelSelector"]["matchLabels"]["finetuning.dev/attempt"] == "3"


def test_the_jobs_own_affinity_stands_beside_it_and_prepare_goes_anywhere() -> None:
    near = {"labelSelector": {"matchLabels": {"app": "store"}}, "topologyKey": "zone"}
    asked = {**AFFINITY, "podAffinity": {REQUIRED: [near]}}
    spec = of_two_nodes(topologyKey="example.com/rack", affinity=asked)
    found = pod_of(built(spec=spec))["affinity"]
    assert (found["nodeAffinity"], found["podAntiAffinity"]) == (AFFINITY["nodeAffinity"], AFFINITY["podAntiAffinity"])
    assert [term["topologyKey"] for term in found["podAffinity"][REQUIRED]] == ["zone", "example.com/rack"]
    assert "affinity" not in pod_of(built("prepare", spec))
    assert "affinity" in pod_of(built("prepare", {**spec, "dataset": {"uri": "pvc://shared/data"}}))


@pytest.mark.parametrize("changes", [{}, {"stage": "prepare"}, {"collect": True}], ids=["train", "prepare", "collect"])
def test_every_stage_runs_as_the_service_account_and_none_has_its_token(changes: Manifest) -> None:
    pod = pod_of(built(spec=make_spec(scheduling={"serviceAccountName": "tuning"}), **changes))
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("tuning", False)


def test_in_a_queue_kueue_places_them() -> None:
    job = built(spec=of_two_nodes(topologyKey="example.com/rack", queue="tuning"))
    annotations = job["spec"]["template"]["metadata"]["annotations"]
    assert annotations["kueue.x-k8s.io/podset-required-topology"] == "example.com/rack"
    assert "affinity" not in pod_of(job)


def test_one_node_needs_no_domain_and_prepare_none_either() -> None:
    alone = make_spec(scheduling={"topologyKey": "example.com/rack"})
    assert "affinity" not in pod_of(built(spec=alone))
    assert "affinity" not in pod_of(built("prepare", of_two_nodes(topologyKey="example.com/rack")))


def test_the_runtime_class_is_for_pods_with_gpus() -> None:
    spec = make_spec(scheduling={"runtimeClassName": "nvidia"})
    assert pod_of(built(spec=spec))["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in pod_of(built("prepare", spec))


GPU_LABEL = "nvidia.com/gpu.product"


@pytest.mark.parametrize(
    ("resources", "gpu", "selector"),
    [
        ({"gpuType": "NVIDIA-L4"}, {}, {GPU_LABEL: "NVIDIA-L4"}),
        ({}, {"type": "NVIDIA-H200"}, {GPU_LABEL: "NVIDIA-H200"}),
        ({"gpuType": "NVIDIA-L4"}, {"type": "NVIDIA-H200"}, {GPU_LABEL: "NVIDIA-L4"}),
        ({"gpusPerNode": 0}, {"type": "NVIDIA-H200"}, None),
        ({"gpuResourceName": "amd.com/gpu"}, {"type": "MI300X"}, None),
    ],
    ids=["job", "profile", "job over profile", "on the CPU", "another maker"],
)
def test_a_gpu_type_leads_the_training_pods_to_its_nodes(resources, gpu, selector) -> None:
    spec = make_spec(resources=resources)
    assert pod_of(built(spec=spec, profile={"gpu": gpu})).get("nodeSelector") == selector
    assert "nodeSelector" not in pod_of(built("prepare", spec, {"gpu": gpu}))


def test_pods_send_traces_where_the_operator_does() -> None:
    def endpoints(**changes: Any) -> list[str]:
        env = [entry for container in containers_of(built(**changes)) for entry in container["env"]]
        return [entry["value"] for entry in env if entry["name"] == "OTEL_EXPORTER_OTLP_ENDPOINT"]

    assert endpoints() == []
    assert set(endpoints(stage="train", otlp_endpoint="http://collector:4318")) == {"http://collector:4318"}
