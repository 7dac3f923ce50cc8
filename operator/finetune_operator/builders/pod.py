"""The pod of a stage: restricted by default, no token but the one for progress, Secrets by reference only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_contract import paths, tracing
from finetune_contract.run_config import Use
from finetune_operator.api import constants as c
from finetune_operator.api.job import FineTuneJobSpec, Resources
from finetune_operator.api.profile import Cache, FineTuneProfileSpec
from finetune_operator.api.quantities import quantity
from finetune_operator.api.scalars import Quantity
from finetune_operator.api.views import Stage
from finetune_operator.builders.additions import Additions, additions

Manifest = dict[str, Any]

USER = 10001
_GPU = "nvidia.com/gpu"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_TOKEN_SECONDS = 3600
_TOKEN_FOLDER, _TOKEN_FILE = paths.POD_PROGRESS_TOKEN.rsplit("/", 1)
_CONFIG_FOLDER, _CONFIG_FILE = paths.POD_CONFIG.rsplit("/", 1)

# A port with this name is what a PodMonitor asks for.
_METRICS_PORT: Manifest = {"name": "metrics", "containerPort": paths.METRICS_PORT, "protocol": "TCP"}
_METRICS_ENV: Manifest = {"name": paths.ENV_METRICS_PORT, "value": str(paths.METRICS_PORT)}


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the pods of an attempt find each other."""

    service: str
    """Name of the headless Service."""
    first: str
    """Hostname of the first pod."""


@dataclass(frozen=True, slots=True)
class PodRequest:
    """What a pod is made from."""

    stage: Stage
    spec: FineTuneJobSpec
    profile: FineTuneProfileSpec
    image: str
    gpus: int
    """GPUs of the pod; 0 for prepare and collect."""
    uid: str
    """uid of the FineTuneJob."""
    progress_url: str
    otlp_endpoint: str = ""
    """Where traces are sent; nowhere when empty."""
    collect: bool = False
    prepares: bool = False
    """Whether a training pod prepares the data first."""
    meeting: Meeting | None = None
    """Absent where one pod is all."""
    beside: Manifest | None = None
    """Term of the affinity by which all pods go to one place."""

    @property
    def added(self) -> Additions:
        """What job and profile add to the pod."""
        return additions(self.profile.pod_template, self.spec.pod_template)


def build_pod_spec(pod: PodRequest) -> Manifest:
    """Return the pod's spec."""
    claims = _claims(pod)
    main = _container(pod, "collect" if pod.collect else pod.stage, claims)
    scheduling, trains = pod.spec.scheduling, pod.stage == "train" and not pod.collect
    before = [*(["prepare"] if pod.prepares else []), "fetch"] if trains else []
    volumes = _volumes(pod, claims) + pod.added.volumes
    # A claim binds where its first pod lands: train must get there.
    placed = pod.stage == "train" or any("persistentVolumeClaim" in volume for volume in volumes)
    return _present(
        {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": pod.spec.lifecycle.grace_period_seconds,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
                **pod.added.security_context,
            },
            "imagePullSecrets": pod.added.image_pull_secrets,
            "priorityClassName": scheduling.priority_class,
            "schedulerName": scheduling.scheduler_name if trains else None,
            "runtimeClassName": scheduling.runtime_class_name if trains else None,
            "serviceAccountName": scheduling.service_account_name,
            "affinity": _affinity(pod, placed=placed),
            "nodeSelector": _node_selector(pod) if placed else None,
            "tolerations": _tolerations(pod),
            "subdomain": pod.meeting.service if pod.meeting else None,
            "initContainers": [_container(pod, stage, claims) for stage in before],
            "containers": [main],
            "volumes": volumes,
        }
    )


def _node_selector(pod: PodRequest) -> dict[str, str] | None:
    """Return the labels of the nodes that the pod may go to, with the GPU's type among them."""
    asked, gpu = pod.spec.resources, pod.profile.gpu
    kind = asked.gpu_type or gpu.type
    is_nvidia = (asked.gpu_resource_name or gpu.resource_name or _GPU).startswith("nvidia.com/")
    typed = {c.LABEL_GPU_PRODUCT: kind} if kind and is_nvidia and pod.spec.resources.gpus else {}
    return {**typed, **(pod.spec.scheduling.node_selector or {})}


def _affinity(pod: PodRequest, *, placed: bool) -> Manifest:
    """Return the job's own affinity, and with it that of its pods to each other."""
    asked = pod.spec.scheduling.affinity
    own: Manifest = asked.to_wire() if asked and placed else {}
    if pod.beside is None:
        return own
    near = own.get("podAffinity", {})
    return {**own, "podAffinity": {**near, _REQUIRED: [*near.get(_REQUIRED, []), pod.beside]}}


def _container(pod: PodRequest, stage: str, claims: tuple[str, ...]) -> Manifest:
    return _present(
        {
            "name": stage if stage != "collect" else pod.stage,
            "image": pod.image,
            "imagePullPolicy": pod.spec.trainer.image_pull_policy or pod.profile.trainer.image_pull_policy,
            "command": ["python", "-m", "finetune_trainer", stage],
            "env": pod.added.env
            + _env(pod)
            + ([_METRICS_ENV] if stage == "train" else [])
            + _deepspeed_config(pod, stage),
            "ports": [_METRICS_PORT] if stage == "train" else None,
            "envFrom": _secrets(pod),
            "resources": _resources(pod, stage),
            "volumeMounts": _mounts(pod, claims) + pod.added.volume_mounts,
            "terminationMessagePath": paths.POD_TERMINATION_LOG,
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }
    )


def _env(pod: PodRequest) -> list[Manifest]:
    storage, hub, threads = pod.profile.storage, pod.profile.hub, _threads(pod)
    values: dict[str, str | None] = {
        paths.ENV_PROGRESS_URL: pod.progress_url,
        paths.ENV_PROGRESS_CA: paths.POD_PROGRESS_CA,
        paths.ENV_PROGRESS_TOKEN: paths.POD_PROGRESS_TOKEN,
        paths.ENV_RENDEZVOUS: f"{pod.meeting.first}.{pod.meeting.service}" if pod.meeting else None,
        tracing.ENDPOINT: pod.otlp_endpoint,
        "AWS_ENDPOINT_URL": storage.endpoint,
        "AWS_REGION": storage.region,
        "HF_ENDPOINT": hub.endpoint,
        # Nothing but /tmp and our folders can be written, and uid 10001 has no entry in /etc/passwd, which
        # torch asks for by getpass.getuser().
        "HOME": "/tmp",  # noqa: S108
        "USER": "finetune",
        # Without it every process starts a thread for each core of the node, whatever its share of them is.
        "OMP_NUM_THREADS": str(threads) if threads else None,
    }
    return [{"name": name, "value": value} for name, value in values.items() if value]


def _deepspeed_config(pod: PodRequest, stage: str) -> list[Manifest]:
    asked = pod.spec.deepspeed.config_map_ref if pod.spec.deepspeed else None
    if asked is None or stage not in ("prepare", "train"):
        return []
    source = {"configMapKeyRef": {"name": asked.name, "key": asked.key}}
    return [{"name": paths.ENV_DEEPSPEED_CONFIG, "valueFrom": source}]


def _threads(pod: PodRequest) -> int | None:
    """Return the whole CPUs that the pod asks for, at least one; None if it asks for none."""
    asked = pod.spec.resources.cpu if pod.stage == "train" else pod.profile.prepare.resources.cpu
    return max(1, int(quantity(asked))) if asked is not None else None


def _secrets(pod: PodRequest) -> list[Manifest]:
    """One Secret a use, each under its own prefix: they may differ. As envFrom, since a missing Secret then shows
    as CreateContainerConfigError, and on the prepare pod, before a GPU is asked for (job-traps 17).
    """
    spec, default = pod.spec, pod.profile.storage.secret_name
    uses = (
        (Use.MODEL, spec.model.secret_ref),
        (Use.DATASET, spec.dataset.secret_ref),
        (Use.OUTPUT, spec.output.secret_ref),
        *(((Use.HUB, spec.output.hub.secret_ref or spec.output.secret_ref),) if spec.output.hub else ()),
    )
    names = [(use, ref.name if ref else default) for use, ref in uses]
    if spec.tracking and spec.tracking.secret_ref:
        names.append((Use.TRACKING, spec.tracking.secret_ref.name))
    judge = spec.evaluation.judge
    if judge and judge.secret_ref:  # a store's credentials are none for a judge
        names.append((Use.JUDGE, judge.secret_ref.name))
    return [{"prefix": use.value, "secretRef": {"name": name}} for use, name in names if name]


def _resources(pod: PodRequest, stage: str) -> Manifest:
    if stage in ("prepare", "collect"):
        wanted = pod.profile.prepare.resources
        requests = _present({"cpu": wanted.cpu or "500m", "memory": wanted.memory or "1Gi"})
        return _present({"requests": requests, "limits": _present({"memory": wanted.memory})})
    return _training_resources(pod.spec.resources, pod.profile, pod.gpus if stage == "train" else 0)


def _training_resources(asked: Resources, profile: FineTuneProfileSpec, gpus: int) -> Manifest:
    gpu = {asked.gpu_resource_name or profile.gpu.resource_name or _GPU: str(gpus)} if gpus else {}
    requests = {"cpu": asked.cpu, "memory": asked.memory, "ephemeral-storage": asked.ephemeral_storage}
    limits = {"memory": asked.memory, "ephemeral-storage": asked.ephemeral_storage, **gpu}
    return _present({"requests": _present({**requests, **gpu}), "limits": _present(limits)})


def _claims(pod: PodRequest) -> tuple[str, ...]:
    spec = pod.spec
    perhaps = (spec.checkpoint.resume_from, spec.evaluation.forgetting.uri)
    uris = (spec.model.uri, *spec.dataset.uris, spec.output.uri, *perhaps)
    return tuple(dict.fromkeys(uri.split("/")[2] for uri in uris if uri and uri.startswith("pvc://")))


def _mounts(pod: PodRequest, claims: tuple[str, ...]) -> list[Manifest]:
    mounts: list[Manifest] = [
        {"name": "config", "mountPath": _CONFIG_FOLDER, "readOnly": True},
        {"name": "progress-token", "mountPath": _TOKEN_FOLDER, "readOnly": True},
        {"name": "work", "mountPath": paths.POD_WORK},
        {"name": "cache", "mountPath": paths.POD_CACHE},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
    ]
    if pod.stage == "train":
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})  # noqa: S108
    mounts += [{"name": f"claim-{n}", "mountPath": f"{paths.POD_CLAIMS}/{name}"} for n, name in enumerate(claims)]
    return mounts


def _volumes(pod: PodRequest, claims: tuple[str, ...]) -> list[Manifest]:
    disk = pod.spec.resources.ephemeral_storage
    volumes: list[Manifest] = [
        {"name": "config", "downwardAPI": {"items": [
            _annotation(_CONFIG_FILE, c.ANNOTATION_CONFIG),
            _annotation(paths.POD_PROGRESS_CA.rsplit("/", 1)[1], c.ANNOTATION_PROGRESS_CA),
        ]}},
        {"name": "progress-token", "projected": {"sources": [{"serviceAccountToken": {
            "audience": c.progress_audience(pod.uid), "expirationSeconds": _TOKEN_SECONDS, "path": _TOKEN_FILE,
        }}]}},
        {"name": "work", "emptyDir": _limit(disk)},
        {"name": "cache", **_cache(pod.profile.cache, disk)},
        {"name": "tmp", "emptyDir": {}},
    ]  # fmt: skip
    if pod.stage == "train":
        size = pod.spec.resources.shared_memory or "1Gi"
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": size}})
    volumes += [{"name": f"claim-{n}", "persistentVolumeClaim": {"claimName": name}} for n, name in enumerate(claims)]
    return volumes


def _cache(cache: Cache, disk: Quantity | None) -> Manifest:
    if cache.claim_name:
        return {"persistentVolumeClaim": {"claimName": cache.claim_name}}
    if cache.host_path:
        return {"hostPath": {"path": cache.host_path, "type": "Directory"}}
    return {"emptyDir": _limit(disk)}


def _limit(size: Quantity | None) -> Manifest:
    return {"sizeLimit": size} if size is not None else {}


def _annotation(path: str, name: str) -> Manifest:
    return {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{name}']"}}


def _tolerations(pod: PodRequest) -> list[Manifest]:
    own = [item.to_wire() for item in pod.spec.scheduling.tolerations or ()]
    lost = [
        {
            "key": f"node.kubernetes.io/{taint}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": pod.profile.not_ready_toleration_seconds,
        }
        for taint in ("not-ready", "unreachable")
    ]
    return [*own, *lost]


def _present(fields: Manifest) -> Manifest:
    """Leave out what is not set, so that manifests say only what matters."""
    return {key: value for key, value in fields.items() if value is not None and value not in ([], {})}
