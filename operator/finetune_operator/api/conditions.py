"""Condition types, their reasons, and the phase that follows from them.

Conditions are the truth; `phase` is computed. Ready, Reconciling and Stalled follow kstatus, which Flux and
Argo CD read (github.com/kubernetes-sigs/cli-utils, pkg/kstatus).
"""

from __future__ import annotations

from enum import StrEnum


class ConditionType(StrEnum):
    """The types, in the order in which a job meets them."""

    VALIDATED = "Validated"
    """The spec and its profile allow a run."""
    PREPARED = "Prepared"
    """The data is checked and tokenised; a GPU may be asked for."""
    QUOTA_RESERVED = "QuotaReserved"
    """Kueue holds quota for the current attempt: there only where the job is in a queue. Its reasons are Kueue's own."""
    PODS_READY = "PodsReady"
    """Every pod of the current attempt is ready."""
    RUNNING = "Running"
    """The trainer works."""
    SUSPENDED = "Suspended"
    """lifecycle.suspend holds the job, and no pod of it is there."""
    CHECKPOINT_AVAILABLE = "CheckpointAvailable"
    """There is a checkpoint that the next attempt can go on from."""
    OUTPUTS_READY = "OutputsReady"
    """The manifest is in storage; all outputs are there."""
    COMPLETE = "Complete"
    """The job has succeeded. Terminal."""
    FAILED = "Failed"
    """The job has failed for good. Terminal."""
    READY = "Ready"
    """kstatus: true only when the job is complete."""
    RECONCILING = "Reconciling"
    """kstatus: the operator is still working on it."""
    STALLED = "Stalled"
    """kstatus: nothing moves until somebody acts."""


class Reason(StrEnum):
    """Reasons that the operator itself sets; a failed stage adds those of the table of exit codes."""

    # Validated
    VALID = "Valid"
    """The spec can be run."""
    INVALID_SPEC = "InvalidSpec"
    """The stored spec does not parse: it was written by another version of the CRD."""
    PROFILE_NOT_FOUND = "ProfileNotFound"
    """spec.profile names no FineTuneProfile. The job waits for it."""
    PROFILE_REQUIRED = "ProfileRequired"
    """Profiles exist, none is the default, and the spec names none."""
    SEVERAL_DEFAULT_PROFILES = "SeveralDefaultProfiles"
    """More than one profile is marked as default."""
    PROFILE_REFUSED = "ProfileRefused"
    """The profile does not allow this job: its limits or its namespaces."""
    NO_TRAINER_IMAGE = "NoTrainerImage"
    """Neither spec, profile nor operator names the trainer's image."""
    CONFIG_TOO_LARGE = "ConfigTooLarge"
    """The run configuration exceeds 64 KiB."""

    # Prepared, PodsReady, Running
    WAITING = "Waiting"
    """The step before it is not done yet."""
    POD_PENDING = "PodPending"
    """The pod is created and not yet started."""
    UNSCHEDULABLE = "Unschedulable"
    """The scheduler finds no node; the message is its own."""
    IMAGE_PULL = "ImagePull"
    """The image cannot be pulled."""
    CONTAINER_CONFIG = "ContainerConfig"
    """The container cannot be made: most often a missing Secret."""
    MOUNT_FAILED = "MountFailed"
    """A volume cannot be mounted: most often a ConfigMap or Secret of podTemplate that is not there; the message is the kubelet's."""
    JOB_REFUSED = "JobRefused"
    """The API server does not take the batch Job, most often for a quota; the message is its own. Where a policy takes no Job for prepare, the training pod prepares."""
    PODS_REFUSED = "PodsRefused"
    """The API server does not take the Job's pods: a quota, Pod Security or another policy; the message is its own."""
    STARTING = "Starting"
    """The containers start, or the model is fetched."""
    PREPARING = "Preparing"
    """The prepare pod works on the data."""
    PREPARED = "Prepared"
    """The data is ready."""
    ADOPTED = "Adopted"
    """An earlier run with the same configuration has left its results, which are taken over (output.ifExists): nothing is done again."""
    TRAINING = "Training"
    """The trainer works."""
    RESTARTING = "Restarting"
    """An attempt has ended; the next one waits for its backoff."""
    POD_FAILED = "PodFailed"
    """The attempt has ended with a failure."""

    # QuotaReserved, Running
    QUEUED = "Queued"
    """The queue holds the Job back; the message is Kueue's."""
    KUEUE_NOT_SERVED = "KueueNotServed"
    """scheduling.queue names a queue, and the cluster serves no Kueue. The job waits for it."""
    WAITING_FOR_KUEUE = "WaitingForKueue"
    """Kueue has not taken the Job up yet."""
    PREEMPTED = "Preempted"
    """Kueue has taken the quota back: the attempt writes a checkpoint, waits in the queue and goes on, without charge."""
    REQUEUED = "Requeued"
    """The Job has left the queue, and the next attempt's takes its place: scheduling.queuePriority has changed, or fewer nodes are asked for (resources.minNodes)."""

    # Suspended
    SUSPENDING = "Suspending"
    """The attempt writes a checkpoint and ends."""
    SUSPENDED = "Suspended"
    """lifecycle.suspend is true: the job's GPUs are free."""
    RESUMED = "Resumed"
    """lifecycle.suspend is false again: the job goes on."""

    # CheckpointAvailable, OutputsReady, Complete, Failed
    CHECKPOINTED = "Checkpointed"
    """A checkpoint is committed in storage."""
    NO_CHECKPOINT = "NoCheckpoint"
    """No checkpoint yet."""
    NOT_WRITTEN = "NotWritten"
    """The outputs are not written yet."""
    MANIFEST_WRITTEN = "ManifestWritten"
    """The manifest is in storage."""
    SUCCEEDED = "Succeeded"
    """The run is complete."""
    RESTART_BUDGET_EXCEEDED = "RestartBudgetExceeded"
    """lifecycle.retries.max failures, or too many disruptions; lastFailure has the last one."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """lifecycle.activeDeadlineSeconds have passed."""
    START_DEADLINE_EXCEEDED = "StartDeadlineExceeded"
    """lifecycle.startDeadlineSeconds have passed, and the trainer has not worked yet."""
    NOT_FAILED = "NotFailed"
    """No failure that ends the job."""

    # Events alone
    NEW_RUN = "NewRun"
    """The spec has changed, or the annotation finetuning.dev/rerun has: the job runs once more."""

    # Failures that pods show without an exit code of ours
    KILLED = "Killed"
    """A container was killed: exit code 137, most often for memory."""
    STALL_TIMEOUT = "StallTimeout"
    """No step was made for lifecycle.stallTimeoutSeconds."""
    EVICTED = "Evicted"
    """The pod was preempted, evicted or drained, or its node was lost."""
    JOB_DELETED = "JobDeleted"
    """The attempt's Job was deleted by somebody else."""
    RESULT_LOST = "ResultLost"
    """The Job completed, but its pod went before its message was read."""
    UNKNOWN_EXIT_CODE = "UnknownExitCode"
    """The container ended with a code that is not in the table."""


class Phase(StrEnum):
    """One word for a table; computed from the conditions."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
