"""The chart with its default values and the kustomization install the same objects."""

import copy
import json

import pytest

from finetune_operator.settings import Settings
from tests.support.manifests import CHART, NAMESPACE, CommandError, chart_objects, kustomize_objects

HELM_LABELS = {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
}
HELM_ANNOTATIONS = {"helm.sh/resource-policy"}


def test_default_values_install_what_the_kustomization_does():
    by_kustomize = kustomize_objects()
    del by_kustomize["Namespace", "", NAMESPACE]  # helm install --create-namespace
    by_chart = chart_objects()
    assert by_chart.keys() == by_kustomize.keys()
    for key, expected in by_kustomize.items():
        assert neutral(by_chart[key]) == neutral(expected), key


def neutral(item):
    """The object without Helm's own marks, and with the rules of a role in one order."""
    item = copy.deepcopy(item)
    metas = [item["metadata"], item.get("spec", {}).get("template", {}).get("metadata", {})]
    for meta in metas:
        strip(meta, "labels", HELM_LABELS)
        strip(meta, "annotations", HELM_ANNOTATIONS)
    if "rules" in item:
        item["rules"] = sorted(grant for rule in item["rules"] for grant in grants(rule))
    return item


def strip(meta, field, names):
    kept = {name: value for name, value in meta.get(field, {}).items() if name not in names}
    meta.pop(field, None)
    if kept:
        meta[field] = kept


def grants(rule):
    names = tuple(rule.get("resourceNames", ()))
    return [
        (group, resource, verb, names)
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


def test_what_the_manifests_set_is_what_the_operator_would_choose_for_itself():
    shipped = settings_of(chart_objects())
    of_the_pod = {"POD_NAMESPACE": NAMESPACE, "POD_NAME": "metadata.name", "POD_UID": "metadata.uid"}
    trainer = {"FINETUNE_TRAINER_IMAGE": "finetune-trainer:0.1.0"}
    bare = Settings.from_env({**of_the_pod, "POD_IP": "status.podIP", **trainer})
    assert shipped == bare


def settings_of(objects):
    container = container_of(objects)
    env = {entry["name"]: entry.get("value") or field_of(entry) for entry in container["env"]}
    return Settings.from_env(env)


def field_of(entry):
    """What the downward API would put in: of the namespace its name, of other fields their path."""
    path = entry["valueFrom"]["fieldRef"]["fieldPath"]
    return NAMESPACE if path == "metadata.namespace" else path


def container_of(objects):
    deployment = next(item for (kind, _, _), item in objects.items() if kind == "Deployment")
    return deployment["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("setting", "image"),
    [
        pytest.param("image.tag=1.2.3", "finetune-operator:1.2.3", id="tag"),
        pytest.param("image.repository=mirror/op", "mirror/op:0.1.0", id="the chart's version is the default tag"),
        pytest.param(f"image.digest=sha256:{'a' * 64}", f"finetune-operator@sha256:{'a' * 64}", id="digest wins"),
    ],
)
def test_image(setting, image):
    assert container_of(chart_objects(setting))["image"] == image


def test_one_replica_alone_can_be_drained():
    objects = chart_objects("replicas=1", "priorityClassName=system-cluster-critical")
    deployment = objects["Deployment", NAMESPACE, "finetune-operator"]["spec"]
    assert deployment["replicas"] == 1
    assert deployment["template"]["spec"]["priorityClassName"] == "system-cluster-critical"
    assert objects["PodDisruptionBudget", NAMESPACE, "finetune-operator"]["spec"]["maxUnavailable"] == 1


def test_values_reach_the_settings():
    objects = chart_objects(
        "watchNamespace=team-a",
        "statusUrl=https://10.0.0.7:8443",
        "logFormat=text",
        "trainerImage=mirror/trainer:9",
        "requireProfile=false",
    )
    settings = settings_of(objects)
    assert settings.watch_namespace == "team-a"
    assert settings.status_url == "https://10.0.0.7:8443"
    assert settings.log_format == "text"
    assert settings.require_profile is False
    assert settings.trainer_image == "mirror/trainer:9"


def test_namespaced_mode_keeps_only_what_has_no_namespace_in_the_cluster_role():
    objects = chart_objects("watchNamespace=team-a")
    cluster_role = objects["ClusterRole", "", f"finetune-operator-{NAMESPACE}"]
    role = objects["Role", "team-a", "finetune-operator-jobs"]
    everywhere = chart_objects()["ClusterRole", "", "finetune-operator"]

    def all_grants(item):
        return {grant for rule in item["rules"] for grant in grants(rule)}

    look_up = {("", "namespaces", "list", ()), ("", "namespaces", "watch", ())}
    assert {resource for _, resource, _, _ in all_grants(cluster_role) - look_up} == {
        "finetuneprofiles",
        "tokenreviews",
        "customresourcedefinitions",
    }
    nodes = {("", "nodes", "list", ())}
    assert all_grants(cluster_role) | all_grants(role) == (all_grants(everywhere) - nodes) | look_up


def test_a_second_operator_can_leave_the_crds_to_the_first():
    kinds = {kind for kind, _, _ in chart_objects("crds.install=false")}
    assert "CustomResourceDefinition" not in kinds


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        pytest.param("image.digest=abc", "image/digest", id="digest of a wrong form"),
        pytest.param("replica=2", "replica", id="a value that does not exist"),
        pytest.param("replicas=0", "replicas", id="no replica"),
        pytest.param("statusUrl=http://10.0.0.7", "statusUrl", id="status server without TLS"),
        pytest.param("watchNamespace=Team_A", "watchNamespace", id="not a namespace's name"),
    ],
)
def test_wrong_values_are_refused_by_name(setting, complaint):
    with pytest.raises(CommandError, match=complaint):
        chart_objects(setting)


def test_monitoring_adds_what_the_prometheus_operator_reads():
    always, added = chart_objects(), chart_objects("monitoring.enabled=true", "monitoring.labels.release=prometheus")
    objects = {key[0::2]: item for key, item in added.items() if key not in always}
    assert objects.keys() == {
        ("PodMonitor", "finetune-operator"),
        ("PodMonitor", "finetune-training"),
        ("PrometheusRule", "finetune-operator"),
    }
    assert all(item["metadata"]["labels"]["release"] == "prometheus" for item in objects.values())
    ports = {port["name"] for port in container_of(added)["ports"]}
    assert objects["PodMonitor", "finetune-operator"]["spec"]["podMetricsEndpoints"][0]["port"] in ports
    (group,) = objects["PrometheusRule", "finetune-operator"]["spec"]["groups"]
    assert {"FineTuneOperatorDown", "FineTuneAttemptsFail"} <= {rule["alert"] for rule in group["rules"]}


def test_network_policies_let_through_what_the_product_needs_and_keep_the_node_s_credentials_away():
    settings = ("networkPolicy.enabled=true", "networkPolicy.trainingNamespaces={team-a,team-b}")
    added = {key: item for key, item in chart_objects(*settings).items() if key not in chart_objects()}
    operator = ("NetworkPolicy", NAMESPACE, "finetune-operator")
    teams = [("NetworkPolicy", team, "finetune-training") for team in ("team-a", "team-b")]
    assert added.keys() == {operator, *teams}
    open_ports = {port["port"] for rule in added[operator]["spec"]["ingress"] for port in rule["ports"]}
    assert open_ports == {"status", "metrics"}
    assert open_ports <= {port["name"] for port in container_of(chart_objects())["ports"]}
    blocks = [
        to["ipBlock"] for rule in added[teams[0]]["spec"]["egress"] for to in rule.get("to", []) if "ipBlock" in to
    ]
    assert "169.254.0.0/16" in blocks[0]["except"]
    assert "fd00:ec2::254/128" in blocks[1]["except"]


def test_the_dashboard_is_a_config_map_that_grafanas_sidecar_takes():
    added = chart_objects("monitoring.dashboard.enabled=true")
    ((_, _, name),) = added.keys() - chart_objects().keys()
    found = added["ConfigMap", NAMESPACE, name]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = found["data"].values()
    assert json.loads(text) == json.loads((CHART / "files" / "dashboard.json").read_text())


def test_traces_go_where_the_chart_says():
    env = {
        entry["name"]: entry.get("value")
        for entry in container_of(chart_objects("tracing.endpoint=http://otel:4318"))["env"]
    }
    assert env["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://otel:4318"


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("http://otel.monitoring:4318", 4318), ("https://otel.example.com", 443), ("http://otel/v1", 80)],
)
def test_the_operator_is_let_out_to_its_collector(endpoint, port):
    policy = chart_objects("networkPolicy.enabled=true", f"tracing.endpoint={endpoint}")[
        "NetworkPolicy", NAMESPACE, "finetune-operator"
    ]
    assert policy["spec"]["egress"][-1] == {"ports": [{"port": port}]}
