"""FineTuneJob: what a user writes. The trainer's part of the spec stands in `finetune_contract.spec`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from finetune_contract.fields import Name
from finetune_contract.model import Model
from finetune_contract.spec import TuningSpec
from finetune_operator.api.affinity import Affinity
from finetune_operator.api.pod_template import PodTemplate
from finetune_operator.api.scalars import GpuType, LabelKey, LabelValue, Quantity, QueueName, Seconds


class PullPolicy(StrEnum):
    """When the image is pulled."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class Resources(Model):
    """What each training pod gets. The prepare pod never asks for a GPU."""

    nodes: Annotated[int, Field(ge=1, le=256)] = 1
    """Training pods of an attempt. They start and end together, and share every batch evenly: batchSize must be a multiple of nodes times gpusPerNode."""
    min_nodes: Annotated[int, Field(ge=1, le=256)] | None = None
    """Fewest training pods that will do; with ZeRO, whose GPUs together hold the model. A job that its queue has had no quota for in five minutes asks for the next smaller number over which batchSize divides evenly, down to this one; batchSize stays what it is."""
    gpus_per_node: Annotated[int, Field(ge=0, le=16)] | None = None
    """GPUs of each training pod; 1 when absent, 0 trains on the CPU. Each has a process of its own, and they share every batch evenly (DDP)."""
    gpu_type: GpuType | None = None
    """Product of the GPUs, as the nodes' label nvidia.com/gpu.product names it: NVIDIA-A100-SXM4-80GB. The training pods go to such nodes only."""
    gpu_memory: Quantity | None = None
    """Memory of one GPU, as 80Gi; that of gpuType, of the profile, or of the nodes when absent: a job that cannot fit is refused with numbers before it asks for one."""
    gpu_resource_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Extended resource that a GPU is; nvidia.com/gpu when absent."""
    cpu: Quantity | None = None
    """CPU that the training pod asks for."""
    memory: Quantity | None = None
    """Memory that the training pod asks for and may use at most."""
    shared_memory: Quantity | None = None
    """Size of /dev/shm; 1Gi when absent. It counts against memory."""
    ephemeral_storage: Quantity | None = None
    """Disk of the training pod for the model, checkpoints and outputs."""

    @property
    def gpus(self) -> int:
        """GPUs of one training pod."""
        return 1 if self.gpus_per_node is None else self.gpus_per_node


class Toleration(Model):
    """A toleration as in a pod's spec."""

    key: Annotated[str, Field(max_length=317)] | None = None
    """Taint key; empty matches all with operator Exists."""
    operator: Literal["Exists", "Equal"] | None = None
    """Equal when absent."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; absent matches all."""
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """How long a NoExecute taint is tolerated."""


class Scheduling(Model):
    """Where the pods may run."""

    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] | None = None
    """Labels that the training pod's node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] | None = None
    """Taints that the pods tolerate."""
    affinity: Affinity | None = None
    """To which nodes the training pods go, and beside or away from which pods of their namespace."""
    queue: QueueName | None = None
    """LocalQueue of Kueue, in the job's namespace, that the training pods wait in for their GPUs. Preparing the data does not wait."""
    queue_priority: QueueName | None = None
    """WorkloadPriorityClass of Kueue: who is admitted first, and who is preempted. May be changed: a job that waits then queues anew, one that runs takes it with its next attempt."""
    priority_class: Name | None = None
    """PriorityClass of the pods. May be changed while the job runs; the next attempt has it."""
    scheduler_name: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Scheduler of the training pods; Kubernetes' own when absent. With volcano and scheduler-plugins-scheduler (coscheduling) the pods of a job with several nodes start all together or not at all."""
    topology_key: Annotated[str, Field(min_length=1, max_length=317)] | None = None
    """Label of nodes whose value all training pods must share, as that of a rack or of an NVLink domain (nvidia.com/gpu.clique). In a queue Kueue sees to it by its topology-aware scheduling, else the pods' affinity to each other does."""
    runtime_class_name: Name | None = None
    """RuntimeClass of the training pods, where GPUs need one, as nvidia."""
    service_account_name: Name | None = None
    """ServiceAccount of the job's namespace that the pods of all stages run as, for a cloud's workload identity and its image pull secrets; default when absent. The pods get no token of it for the API server. A profile says which a job may name (limits.allowedServiceAccounts)."""


class OnOutOfMemory(StrEnum):
    """What follows when memory ran out."""

    REDUCE_MICRO_BATCH = "ReduceMicroBatch"
    FAIL = "Fail"


class Retries(Model):
    """How failures are retried. Disruptions (preemption, eviction, a lost node) are retried without charge."""

    max: Annotated[int, Field(ge=0, le=100)] = 3
    """Failures after which the job fails for good. Errors of the user are never retried."""
    backoff_seconds: Annotated[int, Field(ge=0, le=3600)] = 10
    """Wait before the first retry; doubles with each, up to 5 minutes."""
    on_out_of_memory: OnOutOfMemory = OnOutOfMemory.REDUCE_MICRO_BATCH
    """When memory ran out: the next attempt takes half the micro-batch, at the same batchSize (ReduceMicroBatch), or the job fails (Fail). With one example at a time it fails."""


class OnSpecChange(StrEnum):
    """What a change of the spec is."""

    REJECT = "Reject"
    RERUN = "Rerun"


class Lifecycle(Model):
    """How the job lives. May be changed while it runs."""

    grace_period_seconds: Annotated[int, Field(ge=1, le=86400)] = 300
    """Time between SIGTERM and SIGKILL, for the last checkpoint."""
    retries: Retries = Retries()
    """How failures are retried."""
    on_spec_change: OnSpecChange = OnSpecChange.REJECT
    """What a change of anything but lifecycle and the priority is: refused (Reject), or a new run with outputs of its own, for GitOps (Rerun). The annotation finetuning.dev/rerun, given a new value, asks for a new run of the same spec."""
    suspend: bool = False
    """true ends the attempt after a checkpoint and frees its GPUs, without charge; false goes on from there."""
    active_deadline_seconds: Seconds | None = None
    """Longest time from the start to the job's end, whatever the attempts, suspension not counted. Then it fails as DeadlineExceeded; the last checkpoint stays."""
    start_deadline_seconds: Seconds | None = None
    """Longest time from the start until the trainer first works, suspension not counted. Then the job fails as StartDeadlineExceeded: no GPU was free, or an image could not be pulled."""
    stall_timeout_seconds: Seconds | None = None
    """Longest time without a step while the trainer works. Then the attempt ends as StallTimeout, which is charged, and the next one goes on from the last checkpoint. More than loading the model, an evaluation or the export takes."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31536000)] | None = None
    """Time after the end at which the FineTuneJob is deleted, with its Jobs and pods; what lies in storage stays. Not for GitOps, which would create it again."""
    pod_ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31536000)] | None = None
    """Time after the end at which Jobs and pods are deleted; the FineTuneJob stays, with the end of the log in status.lastFailure."""


class Trainer(Model):
    """The trainer's image."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the trainer; the profile's or the operator's when absent."""
    image_pull_policy: PullPolicy | None = None
    """When the image is pulled."""


class FineTuneJobSpec(TuningSpec):
    """What to tune, and how to run it. Fixed after creation, but for lifecycle and the priority."""

    profile: Name | None = None
    """FineTuneProfile of the platform team to use; the one marked as default when absent."""
    resources: Resources = Resources()
    """What the training pod gets."""
    scheduling: Scheduling = Scheduling()
    """Where the pods may run."""
    lifecycle: Lifecycle = Lifecycle()
    """How the job lives."""
    trainer: Trainer = Trainer()
    """The trainer's image."""
    pod_template: PodTemplate | None = None
    """What is added to the pods: labels, variables, volumes, ids."""
