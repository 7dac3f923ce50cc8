"""Names on the wire: group, labels, annotations, field manager. Each stands here once."""

from __future__ import annotations

GROUP = "finetuning.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
JOB_KIND = "FineTuneJob"
JOB_PLURAL = "finetunejobs"
PROFILE_KIND = "FineTuneProfile"
PROFILE_PLURAL = "finetuneprofiles"

MANAGER = "finetune-operator"

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_JOB = f"{GROUP}/job"
LABEL_JOB_UID = f"{GROUP}/job-uid"
LABEL_STAGE = f"{GROUP}/stage"
LABEL_RUN = f"{GROUP}/run"
LABEL_ATTEMPT = f"{GROUP}/attempt"
MANAGED_SELECTOR = f"{LABEL_MANAGED_BY}={MANAGER}"

PRIORITIES = ("priorityClass", "queuePriority")
"""Fields of spec.scheduling that may change while a job runs; what it computes does not depend on them."""

KUEUE_GROUP = "kueue.x-k8s.io"
WORKLOAD_PLURAL = "workloads"
LABEL_GPU_PRODUCT = "nvidia.com/gpu.product"
LABEL_GPU_MEMORY = "nvidia.com/gpu.memory"
"""Labels of NVIDIA's feature discovery: the product's name, and the memory of one GPU in MiB."""
LABEL_QUEUE = f"{KUEUE_GROUP}/queue-name"
LABEL_QUEUE_PRIORITY = f"{KUEUE_GROUP}/priority-class"

ANNOTATION_CONFIG = f"{GROUP}/config"
ANNOTATION_PROGRESS_CA = f"{GROUP}/progress-ca"
ANNOTATION_RERUN = f"{GROUP}/rerun"
ANNOTATION_DEFAULT_PROFILE = f"{GROUP}/is-default-profile"

MAX_NAME_LENGTH = 40
"""Longest job name: children add the uid, run, attempt and pod index and must stay within 63 (job-traps 9)."""


def progress_audience(uid: str) -> str:
    """Return the audience of the token with which pods of this job report: bound to it and nothing else."""
    return f"{GROUP}/{uid}"
