"""Builders of the values that decisions are made from: the ordinary case, which arguments make a special one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.outcome import Artifact, PrepareResult, TerminationMessage, TrainResult
from finetune_contract.prepared import DatasetSummary, Estimate, Resolved
from finetune_contract.spec import LossOn, Precision
from finetune_operator.api.profile import FineTuneProfileSpec
from finetune_operator.api.report import ProgressReport
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.api.views import (
    ChildJob,
    ContainerView,
    JobView,
    PodView,
    ProfileView,
    Stage,
    View,
    WorkloadView,
)
from finetune_operator.builders.names import child_name
from finetune_operator.policy.decide import PolicySettings, decide
from finetune_operator.policy.plan import Plan

UID = "0f9c2d4e-1111-4222-8333-944455556666"
NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
SETTINGS = PolicySettings(default_image="trainer:1")


def make_spec(**changes: Any) -> dict[str, Any]:
    """Return the smallest spec."""
    return {
        "method": "LoRA",
        "model": {"uri": "s3://models/base"},
        "dataset": {"uri": "s3://data/train.jsonl"},
        "output": {"uri": "s3://models/out"},
        **changes,
    }


def make_job(spec: dict[str, Any] | None = None, status: FineTuneJobStatus | None = None, **changes: Any) -> JobView:
    """Return a FineTuneJob `team/bot`."""
    fields: dict[str, Any] = {
        "namespace": "team",
        "name": "bot",
        "uid": UID,
        "generation": 1,
        "resource_version": "10",
        "deleting": False,
        "spec": spec or make_spec(),
        "status": status or FineTuneJobStatus(),
    }
    return JobView(**{**fields, **changes})


def make_profile(name: str = "pool", *, default: bool = True, **spec: Any) -> ProfileView:
    """Return a FineTuneProfile."""
    return ProfileView(name=name, generation=1, is_default=default, spec=FineTuneProfileSpec.model_validate(spec))


def make_child(stage: Stage = "prepare", state: str = "active", *, attempt: int = 1, **changes: Any) -> ChildJob:
    """Return the batch Job of an attempt."""
    name = child_name("bot", UID, run=1, attempt=attempt, stage=stage)
    fields: dict[str, Any] = {
        "namespace": "team",
        "name": name,
        "uid": f"uid-of-{name}",
        "owner_uid": UID,
        "stage": stage,
        "run": 1,
        "attempt": attempt,
        "state": state,
    }
    return ChildJob(**{**fields, **changes})


def make_pod(child: ChildJob, phase: str = "Running", **changes: Any) -> PodView:
    """Return the pod of a batch Job: running, unless told otherwise."""
    main = ContainerView(
        child.stage, "running" if phase == "Running" else "waiting", "" if phase == "Running" else "ContainerCreating"
    )
    fields: dict[str, Any] = {
        "namespace": "team",
        "name": f"{child.name}-0-abcde",
        "uid": f"pod-of-{child.name}",
        "owner_uid": UID,
        "child": child.name,
        "phase": phase,
        "ready": phase == "Running",
        "containers": (main,),
    }
    return PodView(**{**fields, **changes})


def make_workload(child: ChildJob, **changes: Any) -> WorkloadView:
    """Return Kueue's Workload of a batch Job: waiting for quota, unless told otherwise."""
    fields: dict[str, Any] = {
        "namespace": "team",
        "name": f"job-{child.name}-abcde",
        "uid": f"workload-of-{child.name}",
        "child_uid": child.uid,
        "reserved": False,
        "reason": "WaitingForQuota",
        "message": "insufficient unused quota for nvidia.com/gpu in flavor gpu, 2 more needed",
    }
    return WorkloadView(**{**fields, **changes})


def ended_pod(child: ChildJob, *, exit_code: int, message: str = "", reason: str = "Error", **changes: Any) -> PodView:
    """Return a pod whose main container has ended."""
    container = ContainerView(child.stage, "terminated", "Completed" if exit_code == 0 else reason, message, exit_code)
    phase = "Succeeded" if exit_code == 0 else "Failed"
    return make_pod(child, phase, containers=(container,), ready=False, **changes)


def failed_child(stage: Stage, exit_code: int | None, *, attempt: int = 1) -> ChildJob:
    """Return a failed batch Job whose condition names the exit code, as podFailurePolicy has it."""
    child = make_child(stage, "failed", attempt=attempt)
    pod = f"team/{child.name}-0-abcde"
    said = f"Container {stage} for pod {pod} failed with exit code {exit_code} matching FailJob rule at index 1"
    return make_child(
        stage,
        "failed",
        attempt=attempt,
        failure_reason="PodFailurePolicy" if exit_code is not None else "BackoffLimitExceeded",
        failure_message=said if exit_code is not None else "Job has reached the specified backoff limit",
    )


def prepared_message() -> TerminationMessage:
    """Return what prepare says at its end."""
    dataset = DatasetSummary(
        format=DatasetFormat.MESSAGES, examples=100, train_examples=90, validation_examples=10, train_tokens=9000,
        loss_tokens=3000, longest=120, truncated=0, dropped=0, duplicates=0, warnings=("fewer than 200 examples",),
    )  # fmt: skip
    resolved = Resolved(
        learning_rate=2e-4, total_steps=18, batch_size=16, micro_batch_size=4, max_sequence_length=128, packing=False,
        precision=Precision.BFLOAT16, gradient_checkpointing=False, loss=LossOn.ASSISTANT, eval_every_steps=2,
        checkpoint_every_steps=2,
    )  # fmt: skip
    result = PrepareResult(dataset=dataset, estimate=Estimate(per_gpu_bytes=1 << 30), resolved=resolved)
    return TerminationMessage(stage="prepare", exit_code=0, reason="Completed", sha256="a" * 64, prepared=result)


def trained_message() -> TerminationMessage:
    """Return what train says at its end."""
    artifacts = {name: Artifact(path=name, sha256="b" * 64, bytes=1000) for name in ("adapter", "gguf")}
    result = TrainResult(
        step=18, loss=0.5, eval_loss=0.6, checkpoint_step=18, artifacts=artifacts, warnings=("not pushed",)
    )
    return TerminationMessage(stage="train", exit_code=0, reason="Completed", sha256="c" * 64, trained=result)


def make_report(pod: PodView, *, received_at: datetime = NOW, **values: Any) -> ProgressReport:
    """Return a progress post of a pod."""
    return ProgressReport(
        received_at=received_at, pod_uid=pod.uid, **{"step": 5, "total_steps": 18, "percent": 27, **values}
    )


class Story:
    """A job's life, told one observation at a time: each plan's status is what the next decision starts from."""

    def __init__(self, spec: dict[str, Any] | None = None, *profiles: ProfileView) -> None:
        self.job, self.profiles, self.now = make_job(spec), profiles, NOW
        self.kueue = True

    def sees(
        self,
        *children: ChildJob,
        pods: tuple[PodView, ...] = (),
        workload: WorkloadView | None = None,
        report: ProgressReport | None = None,
    ) -> Plan:
        """Decide on what is seen, and take over the status."""
        view = View(
            job=self.job,
            profiles=self.profiles,
            children=children,
            pods=pods,
            workloads=(workload,) if workload else (),
            kueue=self.kueue,
            report=report,
        )
        plan = decide(view, self.now, SETTINGS)
        if plan.status is not None:
            self.job = replace(self.job, status=plan.status)
        return plan

    def passes(self, seconds: float) -> None:
        """Let time go by."""
        self.now += timedelta(seconds=seconds)

    def condition(self, kind: str) -> tuple[str, str]:
        """Return status and reason of a condition, as they stand."""
        found = next(item for item in self.job.status.conditions if item.type == kind)
        return found.status, found.reason

    @property
    def phase(self) -> str:
        """The phase, as it stands."""
        return str(self.job.status.phase)

    def is_prepared(self) -> ChildJob:
        """Go through prepare to the training Job's creation; return that Job."""
        prepare = make_child("prepare")
        self.sees()
        self.sees(prepare, pods=(make_pod(prepare),))
        done = make_child("prepare", "complete")
        self.sees(done, pods=(ended_pod(done, exit_code=0, message=prepared_message().encode()),))
        return make_child("train")
