"""FineTuneProfile: what the platform team fixes for its users, as a StorageClass does for storage."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from finetune_contract.fields import Name, Uri
from finetune_contract.model import Model
from finetune_operator.api.job import Trainer
from finetune_operator.api.pod_template import PodTemplate
from finetune_operator.api.scalars import GpuType, Quantity, QueueName, Seconds

Pattern = Annotated[str, Field(min_length=1, max_length=512)]
Patterns = Annotated[tuple[Pattern, ...], Field(max_length=64)]
Defaults = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]


class Limits(Model):
    """What a job of this profile may ask for. Patterns take * for any characters."""

    max_gpus: Annotated[int, Field(ge=0, le=100000)] | None = None
    """Most GPUs a job."""
    max_nodes: Annotated[int, Field(ge=1, le=256)] | None = None
    """Most training pods a job."""
    max_memory: Quantity | None = None
    """Most memory of a training pod. A job must then say how much it takes, or have it from the profile's defaults."""
    max_active_deadline_seconds: Seconds | None = None
    """Longest lifecycle.activeDeadlineSeconds: a job that sets none or a longer one has this."""
    allowed_models: Patterns | None = None
    """Patterns of model URIs; any model when absent."""
    allowed_datasets: Patterns | None = None
    """Patterns of URIs of data, validation sets and general texts included; any data when absent."""
    allowed_images: Patterns | None = None
    """Patterns of trainer images that a job may name; only the profile's own when absent."""
    allowed_service_accounts: Patterns | None = None
    """Patterns of ServiceAccounts that a job may name in scheduling.serviceAccountName; only that of the profile's own defaults when absent."""
    allowed_endpoints: Patterns | None = None
    """Endpoints that a job may name in evaluation.judge and tracking.mlflow, as https://judge.example.com/v1: host and port with * for any characters, then all paths below. When absent only those among the profile's own defaults."""
    allowed_output_prefixes: Annotated[tuple[Uri, ...], Field(max_length=64)] | None = None
    """Prefixes of output URIs, of checkpoints of other runs (checkpoint.resumeFrom), and as hf://organisation of repositories to push to; any when absent."""


class Storage(Model):
    """The object store that jobs of this profile use unless their Secrets say otherwise."""

    endpoint: Annotated[str, Field(max_length=512, pattern=r"^https?://[^@/?#]+(/[^@?#]*)?$")] | None = None
    """S3 endpoint URL."""
    region: Annotated[str, Field(max_length=64)] | None = None
    """S3 region."""
    secret_name: Name | None = None
    """Secret of the job's namespace with the credentials, for jobs that name none."""


class Hub(Model):
    """The model hub, or a mirror of it."""

    endpoint: Annotated[str, Field(max_length=512, pattern=r"^https?://[^@/?#]+(/[^@?#]*)?$")] | None = None
    """URL that is used in place of the public hub's."""


class Gpu(Model):
    """The GPUs of this profile."""

    type: GpuType | None = None
    """Product of the GPUs, as the nodes' label nvidia.com/gpu.product names it. Training pods of jobs that name no other go to such nodes only."""
    memory: Quantity | None = None
    """Memory of one GPU, as 80Gi."""
    resource_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Extended resource that a GPU is; nvidia.com/gpu when absent."""


class Cache(Model):
    """Where fetched models are kept between jobs. Without a claim or a folder of the nodes: on the pod's own disk."""

    claim_name: Name | None = None
    """PersistentVolumeClaim of the job's namespace, ReadWriteMany where several nodes run its jobs."""
    host_path: Annotated[str, Field(max_length=512, pattern=r"^/[^:]+$")] | None = None
    """Folder of the nodes, writable by user 10001. Restricted and baseline Pod Security forbid it: for namespaces that enforce neither."""
    max_size: Quantity | None = None
    """Bytes that the models may take, as 500Gi: the one that was used longest ago is removed before another is fetched. Without a limit when absent."""


class PrepareResources(Model):
    """What the prepare pod gets."""

    cpu: Quantity | None = None
    """CPU."""
    memory: Quantity | None = None
    """Memory."""


class PrepareMode(StrEnum):
    """Where data is prepared."""

    JOB = "Job"
    IN_POD = "InPod"


class Prepare(Model):
    """How data is prepared."""

    mode: PrepareMode = PrepareMode.JOB
    """Job: in a pod of its own that asks for no GPU, so that bad data and a missing right are known before one is waited for. InPod: in the training pod, before it trains, which spares the start of a pod; its GPU waits meanwhile. Jobs of several pods prepare in a Job either way."""
    resources: PrepareResources = PrepareResources()
    """What the prepare pod gets."""
    queue: QueueName | None = None
    """LocalQueue of Kueue that the prepare pod waits in, where none may start outside a queue. It asks for no GPU."""


class FineTuneProfileSpec(Model):
    """What the platform team fixes for jobs that use this profile."""

    namespaces: Patterns | None = None
    """Namespaces from which it may be used, with * for any characters; all when absent."""
    defaults: Defaults | None = None
    """Fields of a FineTuneJob's spec that a job has unless it sets them itself."""
    limits: Limits = Limits()
    """What a job may ask for."""
    trainer: Trainer = Trainer()
    """The trainer's image."""
    storage: Storage = Storage()
    """The object store."""
    hub: Hub = Hub()
    """The model hub."""
    gpu: Gpu = Gpu()
    """The GPUs."""
    cache: Cache = Cache()
    """Where fetched models are kept."""
    prepare: Prepare = Prepare()
    """How data is prepared."""
    pod_template: PodTemplate = PodTemplate()
    """What is added to the pods of all jobs; what a job says goes before it, name by name."""
    not_ready_toleration_seconds: Annotated[int, Field(ge=0, le=86400)] = 30
    """How long pods stay on a node that is not ready or unreachable, before the next attempt."""
