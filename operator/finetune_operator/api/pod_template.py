"""What a job or a profile adds to the pods: labels, variables, volumes, ids. Never what is the operator's own.

The operator makes pods for people who may not make any, so that only what is harmless is there to be written: volumes of
four kinds, mounts below /mnt, no host, no privilege, no token, no variable that would have other code run (job-traps 19).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_contract.fields import ConfigMapKeyRef, Name
from finetune_contract.model import Model
from finetune_operator.api.rule import Rule
from finetune_operator.api.scalars import LabelKey, LabelValue, Quantity

_VOLUME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
VolumeName = Annotated[str, Field(min_length=1, max_length=63, pattern=_VOLUME)]
Id = Annotated[int, Field(ge=1, le=2**31 - 1)]
Key = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]


class SecretKeyRef(Model):
    """A key of a Secret of the job's namespace."""

    name: Name
    """Name of the Secret."""
    key: Key
    """Key of its data."""


class FieldRef(Model):
    """A field of the pod."""

    field_path: Annotated[str, Field(min_length=1, max_length=253)]
    """Its path, as status.hostIP."""


class EnvSource(Model):
    """Where a variable's value comes from: exactly one of these."""

    secret_key_ref: SecretKeyRef | None = None
    """A key of a Secret."""
    config_map_key_ref: ConfigMapKeyRef | None = None
    """A key of a ConfigMap."""
    field_ref: FieldRef | None = None
    """A field of the pod."""


class EnvVar(Model):
    """A variable of all containers."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Its name."""
    value: Annotated[str, Field(max_length=4096)] | None = None
    """Its value."""
    value_from: EnvSource | None = None
    """Where its value comes from, in place of value."""


class ConfigMapVolume(Model):
    """The files of a ConfigMap."""

    name: Name
    """Name of the ConfigMap, in the job's namespace."""


class SecretVolume(Model):
    """The files of a Secret."""

    secret_name: Name
    """Name of the Secret, in the job's namespace."""


class EmptyDir(Model):
    """A folder that lives as long as the pod."""

    medium: Literal["Memory"] | None = None
    """Memory, which counts against the containers' memory; the node's disk when absent."""
    size_limit: Quantity | None = None
    """Its size at most."""


class ClaimVolume(Model):
    """A PersistentVolumeClaim."""

    claim_name: Name
    """Name of the claim, in the job's namespace."""
    read_only: bool | None = None
    """Whether nothing may be written."""


class Volume(Model):
    """A volume of the pods: exactly one of these four kinds."""

    name: VolumeName
    """Its name, for the mounts."""
    config_map: ConfigMapVolume | None = None
    """The files of a ConfigMap."""
    secret: SecretVolume | None = None
    """The files of a Secret."""
    empty_dir: EmptyDir | None = None
    """A folder that lives as long as the pod."""
    persistent_volume_claim: ClaimVolume | None = None
    """A PersistentVolumeClaim."""


class VolumeMount(Model):
    """Where a volume lies in all containers."""

    name: VolumeName
    """Name of a volume of podTemplate, the job's or the profile's."""
    mount_path: Annotated[str, Field(min_length=6, max_length=512, pattern=r"^/mnt/[^:]+$")]
    """Where it is mounted: below /mnt, as /mnt/data."""
    sub_path: Annotated[str, Field(max_length=512)] | None = None
    """Folder of the volume to mount."""
    read_only: bool | None = None
    """Whether nothing may be written."""


class PodSecurity(Model):
    """Whom the pods run as. The rest of their security is the operator's."""

    run_as_user: Id | None = None
    """User id; 10001 when absent. OpenShift wants one of the namespace's range."""
    run_as_group: Id | None = None
    """Group id; 10001 when absent."""
    fs_group: Id | None = None
    """Group that volumes belong to; 10001 when absent."""
    supplemental_groups: Annotated[tuple[Id, ...], Field(max_length=16)] | None = None
    """More groups, for shared storage."""


class ImagePullSecret(Model):
    """A Secret with the credentials of a registry."""

    name: Name
    """Its name, in the job's namespace."""


class PodTemplate(Model):
    """What is added to the pods of all stages. What a job says goes before what its profile says, name by name."""

    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] | None = None
    """Labels of the pods."""
    annotations: Annotated[dict[LabelKey, Annotated[str, Field(max_length=1024)]], Field(max_length=16)] | None = None
    """Annotations of the pods."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=32)] | None = None
    """Variables of all containers, as NCCL_SOCKET_IFNAME."""
    volumes: Annotated[tuple[Volume, ...], Field(max_length=16)] | None = None
    """Volumes of the pods."""
    volume_mounts: Annotated[tuple[VolumeMount, ...], Field(max_length=16)] | None = None
    """Where they lie in all containers."""
    security_context: PodSecurity | None = None
    """Whom the pods run as."""
    image_pull_secrets: Annotated[tuple[ImagePullSecret, ...], Field(max_length=8)] | None = None
    """Credentials of registries that the trainer's image is pulled from."""


_OUR_KEYS = (
    "^(finetuning[.]dev|kueue[.]x-k8s[.]io|scheduling[.]x-k8s[.]io|scheduling[.]k8s[.]io|batch[.]kubernetes[.]io"
    "|.*[.]security[.](alpha|beta)[.]kubernetes[.]io)/|^app[.]kubernetes[.]io/(name|managed-by)$"
    "|^scheduling[.]volcano[.]sh/group-|^(job-name|controller-uid)$"
)
_OUR_ENV = (
    "^(FINETUNE_|KUBEFLOW_TRAINER_|MODEL_|DATASET_|OUTPUT_|HUB_|TRACKING_|JUDGE_|PYTHON|LD_|AWS_ENDPOINT_URL)"
    "|^(HOME|USER|PATH|HF_ENDPOINT|OMP_NUM_THREADS|MASTER_ADDR|MASTER_PORT|(LOCAL_|NODE_)?RANK|(LOCAL_)?WORLD_SIZE)$"
)
_OUR_VOLUMES = "^(config|progress-token|work|cache|tmp|shared-memory|claim-.*)$"
_SOURCES = ("configMap", "secret", "emptyDir", "persistentVolumeClaim")
_ENV_SOURCES = ("secretKeyRef", "configMapKeyRef", "fieldRef")


def pod_template_rules(at: tuple[str, ...]) -> Iterator[Rule]:
    """Yield the rules of a podTemplate at a place."""
    for field in ("labels", "annotations"):
        yield Rule(
            (*at, field),
            f"self.all(key, !key.matches('{_OUR_KEYS}'))",
            f"podTemplate.{field}: keys of finetuning.dev, Kueue, Jobs and security profiles are not the user's to set",
            lambda keys: not any(re.search(_OUR_KEYS, key) for key in keys),
        )
    yield Rule(
        (*at, "env", "[]"),
        f"!self.name.matches('{_OUR_ENV}')",
        "podTemplate.env: this variable is the trainer's own, or would have other code run: use the field for it",
        lambda env: not re.search(_OUR_ENV, env["name"]),
    )
    yield Rule(
        (*at, "env", "[]"),
        "!(has(self.value) && has(self.valueFrom))",
        "podTemplate.env: value and valueFrom exclude each other: keep one",
        lambda env: not {"value", "valueFrom"} <= env.keys(),
    )
    yield _exactly_one((*at, "env", "[]", "valueFrom"), _ENV_SOURCES)
    yield Rule(
        (*at, "volumes", "[]"),
        f"!self.name.matches('{_OUR_VOLUMES}')",
        "podTemplate.volumes: this name is that of a volume of the operator: take another",
        lambda volume: not re.search(_OUR_VOLUMES, volume["name"]),
    )
    yield _exactly_one((*at, "volumes", "[]"), _SOURCES)
    yield Rule(
        (*at, "volumeMounts", "[]"),
        "!self.mountPath.contains('..')",
        "podTemplate.volumeMounts: a mountPath stays below /mnt, without ..",
        lambda mount: ".." not in mount["mountPath"],
    )


def _exactly_one(at: tuple[str, ...], names: tuple[str, ...]) -> Rule:
    counted = ", ".join(f"has(self.{name})" for name in names)
    return Rule(
        at,
        f"[{counted}].filter(given, given).size() == 1",
        f"podTemplate: give exactly one of {', '.join(names)}",
        _has_one(names),
    )


def _has_one(names: tuple[str, ...]) -> Callable[[Any], bool]:
    return lambda value: sum(name in value for name in names) == 1
