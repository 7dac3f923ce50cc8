"""The status server before a real API server: real tokens of real pods, reviewed with the shipped rights.

The operator's client runs as its ServiceAccount, so that these tests fail where the manifests lack a right. Posts
are sent by transformers' own callback and by our trainer as well.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from kubernetes.aio import client, config

from dev.cluster.local import LocalCluster
from finetune_contract import paths
from finetune_contract.progress import Metric, TrainerStatus
from finetune_operator.api.constants import progress_audience
from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.secrets import KubeTlsStore
from finetune_operator.kube.tokens import KubeTokenReviewer
from finetune_operator.progress.ports import JobHandle
from finetune_operator.progress.tls import SECRET, TlsKeeper
from tests.support.manifests import KUSTOMIZE, NAMESPACE
from tests.support.progress import LOOPBACK, KnownJobs, Served, served

JOB, OTHER_JOB = "5f3c8a50-0000-4000-8000-000000000001", "5f3c8a50-0000-4000-8000-000000000002"
AUDIENCE = progress_audience(JOB)
POST = {"trainerStatus": {"progressPercentage": 40, "metrics": [{"name": "loss", "value": "0.5"}]}}


class Pods:
    """Makes pods and tokens as the kubelet does: bound to the pod, for one audience."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster

    def make(self, name: str, *, namespace: str = "team") -> str:
        """Create a pod, which no node will run, and return its uid."""
        container = {"name": "trainer", "image": "trainer"}
        spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}
        created = self._cluster.kubectl("create", "-f", "-", "-o", "json", input=json.dumps(pod))
        return str(json.loads(created)["metadata"]["uid"])

    def remove(self, name: str) -> None:
        """Delete a pod of the team at once."""
        self._cluster.kubectl("delete", "pod", name, "-n", "team", "--wait=true")

    def token(self, pod: str | None, *, audience: str | None = AUDIENCE, namespace: str = "team") -> str:
        """Return a token of the namespace's default account, bound to the pod."""
        bound = ("--bound-object-kind=Pod", f"--bound-object-name={pod}") if pod else ()
        wanted = (f"--audience={audience}",) if audience else ()
        return self._cluster.kubectl("create", "token", "default", "-n", namespace, *bound, *wanted).strip()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A control plane with the operator's manifests and two namespaces of users."""
    with LocalCluster(tmp_path_factory.mktemp("cluster"), backend="none", with_s3=False) as started:
        started.kubectl("apply", "--server-side", "-k", str(KUSTOMIZE))
        for namespace in ("team", "rivals"):
            started.kubectl("create", "namespace", namespace)
            started.kubectl("wait", "--for=create", "serviceaccount/default", "-n", namespace, "--timeout=30s")
        yield started


@pytest.fixture(scope="module")
def pods(cluster: LocalCluster) -> Pods:
    return Pods(cluster)


@pytest.fixture(scope="module")
def pod_uid(pods: Pods) -> str:
    """The one live pod of the job's current attempt."""
    return pods.make("tune-0")


@pytest.fixture(scope="module")
def good_token(pods: Pods, pod_uid: str) -> str:
    return pods.token("tune-0")


@pytest.fixture
async def api(cluster: LocalCluster) -> AsyncIterator[KubeClient]:
    """The operator's own client, with the operator's own rights."""
    kubeconfig = cluster.kubeconfig_for_service_account(NAMESPACE, "finetune-operator")
    configuration = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    async with KubeClient(client.ApiClient(configuration)) as connected:
        yield connected


@pytest.fixture
def jobs(pod_uid: str) -> KnownJobs:
    return KnownJobs(
        {
            ("team", "tune"): JobHandle(uid=JOB, pods=frozenset({pod_uid}), attempt=1),
            ("team", "other"): JobHandle(uid=OTHER_JOB, pods=frozenset({"somebody-else"}), attempt=1),
        }
    )


@pytest.fixture
async def run(api: KubeClient, jobs: KnownJobs) -> AsyncIterator[Served]:
    keeper = TlsKeeper(KubeTlsStore(api, namespace=NAMESPACE, name=SECRET), names=LOOPBACK)
    async with served(jobs=jobs, reviewer=KubeTokenReviewer(api), tls=keeper) as running:
        yield running


async def test_a_pods_own_token_is_accepted(run: Served, jobs: KnownJobs, good_token: str, pod_uid: str) -> None:
    assert (await run.post(POST, token=good_token))[:2] == (200, {})
    report = jobs.store.latest(JOB)
    assert report
    assert (report.pod_uid, report.attempt, report.percent, report.loss) == (pod_uid, 1, 40, 0.5)


@pytest.mark.parametrize(
    "audience",
    [
        pytest.param(None, id="the-api-servers"),
        pytest.param(progress_audience(OTHER_JOB), id="another-jobs"),
        pytest.param(f"{AUDIENCE}x", id="nearly-ours"),
    ],
)
async def test_a_wrong_audience_is_401(run: Served, pods: Pods, pod_uid: str, audience: str | None) -> None:
    code, body, _ = await run.post(POST, token=pods.token("tune-0", audience=audience))
    assert (code, body["reason"]) == (401, "Unauthorized")
    assert AUDIENCE in body["message"]


async def test_the_jobs_token_is_401_at_another_job(run: Served, good_token: str) -> None:
    assert (await run.post(POST, token=good_token, name="other"))[0] == 401


async def test_another_pod_that_had_our_audience_made_is_403(run: Served, jobs: KnownJobs, pods: Pods) -> None:
    pods.make("curious")
    code, body, _ = await run.post(POST, token=pods.token("curious"))
    assert (code, body["message"]) == (403, "pod 'curious' is no live pod of the job's current attempt")
    assert jobs.store.latest(JOB) is None


async def test_another_namespaces_pod_with_our_audience_is_403(run: Served, pods: Pods) -> None:
    pods.make("tune-0", namespace="rivals")
    code, body, _ = await run.post(POST, token=pods.token("tune-0", namespace="rivals"))
    assert (code, body["message"]) == (403, "the token is of namespace 'rivals', the job of 'team'")


async def test_a_token_that_is_bound_to_no_pod_is_403(run: Served, pods: Pods) -> None:
    code, body, _ = await run.post(POST, token=pods.token(None))
    assert (code, body["message"]) == (403, "the token is bound to no pod")


async def test_a_deleted_pods_token_is_401(run: Served, api: KubeClient, jobs: KnownJobs, pods: Pods) -> None:
    pods.make("short-lived")
    token = pods.token("short-lived")
    assert (await run.post(POST, token=token))[0] == 403  # good, but no pod of the job
    pods.remove("short-lived")
    await until_refused(KubeTokenReviewer(api), token)
    async with served(jobs=jobs, reviewer=KubeTokenReviewer(api)) as anew:
        assert (await anew.post(POST, token=token))[0] == 401


async def until_refused(reviewer: KubeTokenReviewer, token: str) -> None:
    """Wait until the API server has forgotten that the token was good, which takes it ten seconds."""
    for _ in range(60):
        if await reviewer.review_token(token, audience=AUDIENCE) is None:
            return
        await asyncio.sleep(0.5)
    pytest.fail("the API server still takes the token of a pod that is gone")


def resigned(token: str, cluster: LocalCluster, **changes: Any) -> str:
    """Return the token with other claims, signed with the cluster's own key: no token lives less than ten minutes."""
    head, payload, _ = token.split(".")
    claims = {**json.loads(base64.urlsafe_b64decode(payload + "==")), **changes}
    signed = f"{head}.{base64url(json.dumps(claims).encode())}"
    key = serialization.load_pem_private_key(
        (cluster.run_dir / "control-plane/pki/service-accounts.key").read_bytes(), password=None
    )
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


async def test_an_expired_token_is_401(run: Served, good_token: str, cluster: LocalCluster) -> None:
    now = int(time.time())
    fresh = resigned(good_token, cluster, exp=now + 700)
    assert (await run.post(POST, token=fresh))[0] == 200  # so the signature is right, and only time is not
    expired = resigned(good_token, cluster, iat=now - 7200, nbf=now - 7200, exp=now - 3600)
    assert (await run.post(POST, token=expired))[0] == 401


async def test_a_forged_signature_is_401(run: Served, good_token: str) -> None:
    head, payload, signature = good_token.split(".")
    assert (await run.post(POST, token=f"{head}.{payload}.{signature[::-1]}"))[0] == 401


async def test_the_secret_keeps_the_certificates_for_the_next_operator(run: Served, cluster: LocalCluster) -> None:
    found = json.loads(cluster.kubectl("get", "secret", SECRET, "-n", NAMESPACE, "-o", "json"))
    assert base64.b64decode(found["data"]["ca.crt"]).decode() == run.tls.ca_pem


async def test_operators_that_start_at_once_agree_on_one_ca(api: KubeClient, cluster: LocalCluster) -> None:
    cluster.kubectl("patch", "secret", SECRET, "-n", NAMESPACE, "--type=json", '-p=[{"op":"remove","path":"/data"}]')
    stores = [KubeTlsStore(api, namespace=NAMESPACE, name=SECRET) for _ in range(4)]
    keepers = [TlsKeeper(store, names=LOOPBACK) for store in stores]
    await asyncio.gather(*(keeper.refresh() for keeper in keepers))
    assert len({keeper.ca_pem for keeper in keepers}) == 1


@pytest.fixture
def pod_environment(run: Served, good_token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operator gives a pod: URL, CA file and token file."""
    ca, token = tmp_path / "ca.crt", tmp_path / "token"
    ca.write_text(run.tls.ca_pem)
    token.write_text(good_token + "\n")
    monkeypatch.setenv(paths.ENV_PROGRESS_URL, run.url())
    monkeypatch.setenv(paths.ENV_PROGRESS_CA, str(ca))
    monkeypatch.setenv(paths.ENV_PROGRESS_TOKEN, str(token))


@pytest.mark.usefixtures("pod_environment")
async def test_transformers_own_callback_reports(jobs: KnownJobs) -> None:
    from transformers.integrations.integration_utils import KubeflowCallback

    metrics = {"loss": 1.25, "current_step": 5, "total_steps": 50, "current_epoch": 0.1, "grad_norm": float("nan")}
    callback = KubeflowCallback()
    sent = await asyncio.to_thread(
        callback._update_status, progress_percent=10, estimated_time_remaining=90.5, metrics=metrics, force=True
    )
    assert sent is True
    report = jobs.store.latest(JOB)
    assert report
    assert (report.percent, report.eta_seconds, report.loss) == (10, 90, 1.25)
    assert (report.step, report.total_steps, report.epoch) == (5, 50, 0.1)


@pytest.mark.usefixtures("pod_environment")
async def test_our_trainer_reports(jobs: KnownJobs) -> None:
    from finetune_trainer.reporting.progress import Poster

    poster = Poster.from_env()
    metrics = (Metric(name="checkpointStep", value="40"), Metric(name="tokensPerSecond", value="1234.5"))
    poster.post(TrainerStatus(progress_percentage=80, metrics=metrics))
    await asyncio.to_thread(poster.close)
    report = jobs.store.latest(JOB)
    assert report
    assert (report.percent, report.checkpoint_step, report.tokens_per_second) == (80, 40, 1234.5)
