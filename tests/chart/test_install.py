"""Both ways of installing, each on a real API server of its own; then what the ServiceAccount may do there."""

import base64
import json
from contextlib import contextmanager

import pytest

from dev.cluster.local import KubectlError, LocalCluster
from dev.operator import LocalOperator
from tests.support.manifests import CHART, KUSTOMIZE, NAMESPACE, RELEASE, run_helm

SAMPLES = KUSTOMIZE / "samples"
ACCOUNT = f"--as=system:serviceaccount:{NAMESPACE}:finetune-operator"


@pytest.fixture(scope="module")
def new_cluster(tmp_path_factory):
    """Start control planes, and end them all with the module."""
    started = []

    def start(name):
        started.append(LocalCluster(tmp_path_factory.mktemp(name), backend="none", with_s3=False))
        started[-1].start()
        return started[-1]

    yield start
    for cluster in started:
        cluster.stop()


def by_kustomize(cluster, *_):
    return cluster.kubectl("apply", "--server-side", "-k", str(KUSTOMIZE))


def by_helm(cluster, *settings):
    flags = [flag for setting in settings for flag in ("--set", setting)]
    target = ("--namespace", NAMESPACE, "--create-namespace")
    return run_helm(cluster.kubeconfig, "upgrade", "--install", RELEASE, str(CHART), *target, *flags)


@pytest.fixture(scope="module", params=[by_kustomize, by_helm], ids=["kustomize", "helm"])
def installed(request, new_cluster):
    """A cluster with the operator installed one way, and that way, to do it again."""
    cluster = new_cluster(request.param.__name__)
    request.param(cluster)
    return cluster, request.param


@pytest.fixture
def cluster(installed):
    return installed[0]


def test_the_kinds_are_served(cluster):
    cluster.kubectl("wait", "--for=condition=Established", "crd", "-l", "app.kubernetes.io/name=finetune-operator")
    served = cluster.kubectl("api-resources", "--api-group=finetuning.dev", "-o", "name").split()
    assert served == ["finetunejobs.finetuning.dev", "finetuneprofiles.finetuning.dev"]


def test_the_samples_are_accepted(cluster):
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all")
    cluster.kubectl("apply", "--server-side", "-k", str(SAMPLES))
    assert "support-bot" in cluster.kubectl("get", "ftj", "support-bot")


def test_a_misspelt_field_is_refused(cluster):
    misspelt = (SAMPLES / "finetunejob.yaml").read_text().replace("dataset:", "data:")
    with pytest.raises(KubectlError, match=r"\.spec\.data: field not declared"):
        cluster.kubectl("apply", "--server-side", "-f", "-", input=misspelt)


def test_what_the_operator_wrote_into_its_secret_outlives_the_next_install(installed):
    cluster, install = installed
    certificate = base64.b64encode(b"certificate").decode()
    secret = json.loads(cluster.kubectl("-n", NAMESPACE, "get", "secret", "finetune-operator-tls", "-o", "json"))
    cluster.kubectl("replace", "-f", "-", input=json.dumps(secret | {"data": {"ca.crt": certificate}}))
    install(cluster)
    found = cluster.kubectl("-n", NAMESPACE, "get", "secret", "finetune-operator-tls", "-o", "json")
    assert json.loads(found)["data"] == {"ca.crt": certificate}


def test_the_pod_is_admitted_under_restricted_pod_security(cluster):
    cluster.kubectl("label", "--overwrite", "ns", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    deployment = json.loads(cluster.kubectl("-n", NAMESPACE, "get", "deploy", "finetune-operator", "-o", "json"))
    template = deployment["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "probe", "namespace": NAMESPACE}}
    cluster.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(pod))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        pytest.param("list finetunejobs -A", "yes", id="sees jobs everywhere"),
        pytest.param("patch finetunejobs --subresource=status -n team", "yes", id="writes their status"),
        pytest.param("update finetunejobs -n team", "no", id="never writes their spec"),
        pytest.param("create jobs.batch -n team", "yes", id="creates Jobs"),
        pytest.param("patch jobs.batch -n team", "no", id="never patches Jobs"),
        pytest.param("update jobs.batch -n team", "no", id="never updates Jobs"),
        pytest.param("get pods --subresource=log -n team", "yes", id="reads logs"),
        pytest.param("create pods -n team", "no", id="makes no pods itself"),
        pytest.param("create pods --subresource=exec -n team", "no", id="enters no pod"),
        pytest.param("create tokenreviews.authentication.k8s.io", "yes", id="checks tokens"),
        pytest.param("create serviceaccounts --subresource=token -n team", "no", id="makes no tokens"),
        pytest.param("get secrets -n team", "no", id="reads no user's Secret"),
        pytest.param("list secrets -A", "no", id="lists no Secrets"),
        pytest.param("watch secrets -n team", "no", id="watches no user's Secret"),
        pytest.param("update secrets -n team", "no", id="writes no user's Secret"),
        pytest.param("create configmaps -n team", "no", id="makes no ConfigMap"),
        pytest.param(f"list secrets -n {NAMESPACE}", "no", id="lists none of its own namespace either"),
        pytest.param(f"get secret/finetune-operator-tls -n {NAMESPACE}", "yes", id="reads its own one"),
        pytest.param(f"update secret/finetune-operator-tls -n {NAMESPACE}", "yes", id="fills its own one"),
        pytest.param(f"create lease/finetune-operator -n {NAMESPACE}", "yes", id="makes its own Lease"),
        pytest.param(f"update lease/finetune-operator -n {NAMESPACE}", "yes", id="renews its own Lease"),
        pytest.param(f"get lease/another -n {NAMESPACE}", "no", id="sees no other Lease"),
        pytest.param("update lease/finetune-operator -n team", "no", id="no Lease of another namespace"),
        pytest.param(f"patch endpointslice/finetune-operator-ipv4 -n {NAMESPACE}", "yes", id="says where it is"),
        pytest.param(f"patch endpointslice/another -n {NAMESPACE}", "no", id="not where others are"),
        pytest.param(f"create endpointslices -n {NAMESPACE}", "no", id="makes no slice but its own"),
        pytest.param(f"delete secret/finetune-operator-tls -n {NAMESPACE}", "no", id="does not delete it"),
    ],
)
def test_rights_of_the_service_account(cluster, question, answer):
    assert can_i(cluster, question) == answer


def can_i(cluster, question):
    try:
        return cluster.kubectl("auth", "can-i", *question.split(), ACCOUNT).strip()
    except KubectlError:  # "no" is exit code 1
        return "no"


def test_the_operator_works_with_these_rights(cluster):
    with running_operator(cluster) as log:
        cluster.kubectl("apply", "--server-side", "-k", str(SAMPLES))
        wait_until_prepare_is_created(cluster, "default")
    assert "forbidden" not in log.read_text().lower()


@contextmanager
def running_operator(cluster, **settings):
    """The operator's process on what is installed already; the value is its log file."""
    operator = LocalOperator(cluster, **settings)
    try:
        operator.start()
        yield operator.log
    finally:
        operator.stop()


def wait_until_prepare_is_created(cluster, namespace):
    cluster.kubectl("wait", "--for=jsonpath={.status.phase}", "ftj/support-bot", "-n", namespace, "--timeout=30s")
    jobs = cluster.kubectl("get", "jobs", "-n", namespace, "-l", "finetuning.dev/job=support-bot", "-o", "name")
    assert jobs.startswith("job.batch/support-bot-"), cluster.kubectl("get", "ftj", "-A", "-o", "yaml")


def test_namespaced_mode_works_in_its_namespace_only(new_cluster):
    cluster = new_cluster("namespaced")
    cluster.kubectl("create", "namespace", "team-a")
    by_helm(cluster, "watchNamespace=team-a")
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all")
    assert can_i(cluster, "list finetunejobs -n team-a") == "yes"
    assert can_i(cluster, "create jobs.batch -n team-a") == "yes"
    assert can_i(cluster, "list finetuneprofiles") == "yes"
    assert can_i(cluster, "create tokenreviews.authentication.k8s.io") == "yes"
    assert can_i(cluster, "list finetunejobs -A") == "no"
    assert can_i(cluster, "create jobs.batch -n team-b") == "no"
    with running_operator(cluster, watch_namespace="team-a") as log:
        for namespace in ("team-a", "default"):
            sample = (SAMPLES / "finetunejob.yaml").read_text().replace("namespace: default", f"namespace: {namespace}")
            cluster.kubectl("apply", "-f", "-", input=sample)
        wait_until_prepare_is_created(cluster, "team-a")
    assert cluster.kubectl("get", "ftj", "support-bot", "-n", "default", "-o", "jsonpath={.status.phase}") == ""
    assert "forbidden" not in log.read_text().lower()


def test_uninstalling_the_chart_keeps_the_jobs(new_cluster):
    cluster = new_cluster("uninstall")
    by_helm(cluster, "networkPolicy.enabled=true", "networkPolicy.trainingNamespaces={default}")
    assert cluster.kubectl("get", "networkpolicies", "-A", "-o", "name").split() == [
        "networkpolicy.networking.k8s.io/finetune-training",
        "networkpolicy.networking.k8s.io/finetune-operator",
    ]
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all")
    cluster.kubectl("apply", "-k", str(SAMPLES))
    run_helm(cluster.kubeconfig, "uninstall", RELEASE, "--namespace", NAMESPACE)
    assert "support-bot" in cluster.kubectl("get", "ftj", "support-bot")
