"""The batch Job of one attempt. Created by POST and never touched again: applying to it would fight with Kueue."""

from __future__ import annotations

from finetune_operator.api import constants as c
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.profile import FineTuneProfileSpec
from finetune_operator.api.views import JobView, Stage
from finetune_operator.builders.names import child_name, service_name
from finetune_operator.builders.pod import Manifest, Meeting, PodRequest, build_pod_spec
from finetune_operator.builders.run_config import build_run_config


def build_job(
    job: JobView,
    spec: FineTuneJobSpec,
    profile: FineTuneProfileSpec,
    *,
    stage: Stage,
    run: int,
    attempt: int,
    image: str,
    collect: bool,
    progress_url: str,
    progress_ca: str,
    otlp_endpoint: str = "",
) -> Manifest:
    """Return the batch Job of one stage of one attempt."""
    config = build_run_config(job, spec, profile, run=run, attempt=attempt)
    labels = _labels(job, stage=stage, run=run, attempt=attempt)
    gpus = config.device.gpus if stage == "train" and not collect else 0
    nodes = spec.resources.nodes if stage == "train" and not collect else 1
    name = child_name(job.name, job.uid, run=run, attempt=attempt, stage=stage)
    pod = PodRequest(
        stage=stage,
        spec=spec,
        profile=profile,
        image=image,
        gpus=gpus,
        uid=job.uid,
        progress_url=progress_url,
        otlp_endpoint=otlp_endpoint,
        collect=collect,
        meeting=Meeting(service=service_name(job.name, job.uid), first=f"{name}-0") if nodes > 1 else None,
    )
    annotations = {c.ANNOTATION_CONFIG: config.to_json(), c.ANNOTATION_PROGRESS_CA: progress_ca}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": job.namespace,
            "labels": labels,
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {
            "completions": nodes,
            "parallelism": nodes,
            "completionMode": "Indexed",
            "backoffLimit": 0,  # an attempt is one set of pods; retries are counted on the FineTuneJob
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": _failure_policy(),
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": build_pod_spec(pod)},
        },
    }


def _failure_policy() -> Manifest:
    """FailJob keeps the exit code in the Job's condition, where it outlives the pod (job-traps 5)."""
    return {
        "rules": [
            {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [0]}},
        ]
    }


def _labels(job: JobView, *, stage: Stage, run: int, attempt: int) -> dict[str, str]:
    return {
        c.LABEL_MANAGED_BY: c.MANAGER,
        "app.kubernetes.io/name": "finetune",
        c.LABEL_JOB: job.name,
        c.LABEL_JOB_UID: job.uid,
        c.LABEL_STAGE: stage,
        c.LABEL_RUN: str(run),
        c.LABEL_ATTEMPT: str(attempt),
    }


def owner_reference(job: JobView) -> Manifest:
    """Return the reference that makes a child go with its FineTuneJob."""
    return {
        "apiVersion": c.API_VERSION,
        "kind": c.JOB_KIND,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
