"""The batch Job of one attempt. Created by POST and never touched again: applying to it would fight with Kueue."""

from __future__ import annotations

from finetune_operator.api import constants as c
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.profile import FineTuneProfileSpec
from finetune_operator.api.views import JobView, Stage
from finetune_operator.builders import placement
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
    trains = stage == "train" and not collect
    gpus, nodes = (config.device.gpus, spec.resources.nodes) if trains else (0, 1)
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
        prepares=trains and _prepares(job),
        meeting=Meeting(service=service_name(job.name, job.uid), first=f"{name}-0") if nodes > 1 else None,
        beside=placement.topology_term(spec, labels) if trains else None,
    )
    queueing = _queue_labels(spec, profile, stage=stage, collect=collect)
    annotations = {c.ANNOTATION_CONFIG: config.to_json(), c.ANNOTATION_PROGRESS_CA: progress_ca}
    if trains:
        annotations |= placement.topology_annotations(spec)
    template = {
        "metadata": {
            "labels": {**pod.added.labels, **labels, **(placement.pod_labels(spec, name) if trains else {})},
            "annotations": {**pod.added.annotations, **annotations},
        },
        "spec": build_pod_spec(pod),
    }
    about = placement.job_annotations(spec) if trains else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": job.namespace,
            "labels": {**labels, **queueing},
            **({"annotations": about} if about else {}),
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {
            **({"suspend": True} if queueing else {}),  # Kueue starts it
            "completions": nodes,
            "parallelism": nodes,
            "completionMode": "Indexed",
            "backoffLimit": 0,  # an attempt is one set of pods; retries are counted on the FineTuneJob
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": _failure_policy(),
            "template": template,
        },
    }


def _prepares(job: JobView) -> bool:
    """Whether the run's data are still to be prepared, and by the training pod."""
    resolved = job.status.resolved
    return resolved is not None and resolved.prepares_in_pod is True and resolved.prepared_sha256 is None


def _queue_labels(
    spec: FineTuneJobSpec, profile: FineTuneProfileSpec, *, stage: Stage, collect: bool
) -> dict[str, str]:
    """Return the labels by which Kueue takes the Job into a queue. On the Job alone: its pods are not queued again."""
    if stage == "prepare" or collect:
        return {c.LABEL_QUEUE: profile.prepare.queue} if profile.prepare.queue else {}
    wanted = spec.scheduling
    if wanted.queue is None:
        return {}
    priority = {c.LABEL_QUEUE_PRIORITY: wanted.queue_priority} if wanted.queue_priority else {}
    return {c.LABEL_QUEUE: wanted.queue, **priority}


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
