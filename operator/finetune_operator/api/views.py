"""What a decision is made from: slim frozen views of the objects that the operator watches.

A Job's dict takes 25 KB in memory, its view 0.3 KB; the cache holds views only. `parse.py` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from finetune_operator.api.profile import FineTuneProfileSpec
from finetune_operator.api.report import ProgressReport
from finetune_operator.api.status import FineTuneJobStatus

Stage = Literal["prepare", "train"]
Key = tuple[str, str]
"""Namespace and name of a FineTuneJob."""


@dataclass(frozen=True, slots=True)
class JobView:
    """A FineTuneJob."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    deleting: bool
    spec: dict[str, Any]
    """As stored: the profile's defaults are merged in later."""
    status: FineTuneJobStatus
    rerun: str | None = None
    """Value of the annotation that asks for a new run whenever it changes."""

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.namespace, self.name


@dataclass(frozen=True, slots=True)
class ProfileView:
    """A FineTuneProfile."""

    name: str
    generation: int
    is_default: bool
    spec: FineTuneProfileSpec


@dataclass(frozen=True, slots=True)
class ChildJob:
    """A batch Job that runs one stage of one attempt."""

    namespace: str
    name: str
    uid: str
    owner_uid: str
    stage: Stage
    run: int
    attempt: int
    state: Literal["active", "complete", "failed"]
    deleting: bool = False
    failure_reason: str = ""
    """Reason of the Job's Failed condition, as PodFailurePolicy."""
    failure_message: str = ""
    """Its message, which keeps the exit code even when the pod is gone (job-traps 5)."""
    created_at: datetime | None = None
    suspended: bool = False
    """Whether no pod may start: the queue has not admitted it, or has taken its quota back."""
    queue_priority: str | None = None
    """Name of its WorkloadPriorityClass."""


@dataclass(frozen=True, slots=True)
class WorkloadView:
    """Kueue's Workload of a batch Job: where that stands in its queue."""

    namespace: str
    name: str
    uid: str
    child_uid: str
    """uid of the batch Job."""
    reserved: bool
    """Whether it has quota: the condition QuotaReserved."""
    reason: str
    """Its reason, as WaitingForQuota."""
    message: str
    """Its message, as the quota that is missing."""
    admitted: bool = False
    """Whether the Job may start: quota, and all admission checks."""
    checks: str = ""
    """Message of the condition Admitted while it is false."""
    evicted: str = ""
    """Reason of the condition Evicted while it is true, as Preempted."""
    evicted_message: str = ""
    """Its message."""


@dataclass(frozen=True, slots=True)
class ContainerView:
    """One container of a pod, init containers included."""

    name: str
    state: Literal["waiting", "running", "terminated"]
    reason: str = ""
    message: str = ""
    """Why it waits, or its termination message."""
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod of a child Job."""

    namespace: str
    name: str
    uid: str
    owner_uid: str
    """uid of the FineTuneJob, from the label."""
    child: str
    """Name of the batch Job."""
    phase: str
    ready: bool
    containers: tuple[ContainerView, ...] = ()
    unschedulable: str = ""
    """The scheduler's message while it finds no node."""
    disruption: str = ""
    """Reason of the DisruptionTarget condition while that is true."""
    deleted_at: datetime | None = None
    """When it has to be gone: deletion time, grace period included."""
    disrupted_at: datetime | None = None
    """When DisruptionTarget became true."""
    grace_seconds: int = 30

    @property
    def is_terminal(self) -> bool:
        """Whether every container has ended."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class GpuNode:
    """A node whose GPUs NVIDIA's feature discovery has labelled."""

    name: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class View:
    """Everything that one decision sees."""

    job: JobView
    profiles: tuple[ProfileView, ...] = ()
    children: tuple[ChildJob, ...] = ()
    """Jobs whose controller is this FineTuneJob, by uid."""
    gone: ChildJob | None = None
    """The newest of those Jobs that this operator has seen and that are there no more."""
    pods: tuple[PodView, ...] = ()
    """Pods of those Jobs."""
    workloads: tuple[WorkloadView, ...] = ()
    """Kueue's Workloads of those Jobs."""
    kueue: bool = False
    """Whether the cluster serves Kueue."""
    refused_pods: str = ""
    """Why the API server takes no pods of the current Job, in its words; nothing where it does."""
    mount_failure: str = ""
    """Why a pod of the current Job gets no volumes, in the kubelet's words; nothing where it does."""
    gpu_nodes: tuple[GpuNode, ...] = ()
    """Nodes with labelled GPUs, as of the last full LIST."""
    report: ProgressReport | None = None
    """The newest progress post."""
