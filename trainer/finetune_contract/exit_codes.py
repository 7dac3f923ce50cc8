"""Every known way to fail: its exit code, the reason shown in conditions, and its failure class.

The trainer exits with the code, the operator reads it from the pod or from the Job's condition; the class says
what is done about it. Codes stay away from those that shells and signals use (0-2, 126-165).
A contract test walks the table from the trainer's error to the operator's condition.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class FailureClass(StrEnum):
    """What kind of failure it is, which decides whether another attempt is made."""

    USER_ERROR = "UserError"
    """Only a change by the user helps: never retried."""
    OUT_OF_MEMORY = "OutOfMemory"
    """Accelerator or host memory ran out."""
    NON_FINITE = "NonFinite"
    """Loss or gradients became NaN or infinite."""
    STORAGE = "Storage"
    """Object storage could not be reached."""
    HUB_ACCESS = "HubAccess"
    """The model hub could not be reached."""
    COLLECTIVE = "Collective"
    """The processes of one attempt lost each other: retried within the budget."""
    DISRUPTED = "Disrupted"
    """Preempted, evicted, drained or deleted: retried without charge."""
    DEADLINE = "Deadline"
    """A limit of time in the job's lifecycle has passed: never retried."""
    INFRASTRUCTURE = "Infrastructure"
    """Anything else: retried within the budget."""


class ExitCode(IntEnum):
    """Exit codes of every stage of the trainer."""

    SUCCESS = 0
    CONFIG_INVALID = 10
    DATASET_NOT_FOUND = 11
    DATASET_INVALID = 12
    DATASET_TOO_SMALL = 13
    EXAMPLES_TOO_LONG = 14
    MODEL_NOT_FOUND = 15
    MODEL_INVALID = 16
    CHAT_TEMPLATE_MISSING = 17
    OUTPUT_EXISTS = 18
    WILL_NOT_FIT = 19
    STORAGE_ACCESS_DENIED = 20
    BUCKET_NOT_FOUND = 21
    HUB_ACCESS_DENIED = 22
    CHECKPOINT_UNUSABLE = 23
    GATE_FAILED = 24
    OUT_OF_MEMORY = 30
    LOSS_NOT_FINITE = 31
    LOSS_DIVERGED = 32
    GRADIENTS_VANISHED = 33
    STORAGE_UNAVAILABLE = 40
    HUB_UNAVAILABLE = 41
    DISK_FULL = 42
    PREPARED_DATA_CHANGED = 43
    RESULT_MISSING = 44
    COLLECTIVE_TIMEOUT = 45
    RANK_LOST = 46
    INTERNAL_ERROR = 50
    PREEMPTED = 60


@dataclass(frozen=True, slots=True)
class Failure:
    """One row of the table."""

    code: ExitCode
    reason: str
    """CamelCase reason of the `Failed` condition and of `status.lastFailure`."""
    failure_class: FailureClass
    meaning: str
    """When the trainer exits with it, and what helps."""


_C, _F = ExitCode, FailureClass

FAILURES: tuple[Failure, ...] = (
    Failure(_C.CONFIG_INVALID, "ConfigInvalid", _F.USER_ERROR,
            "The run configuration is malformed or contradicts itself."),
    Failure(_C.DATASET_NOT_FOUND, "DatasetNotFound", _F.USER_ERROR,
            "Nothing lies at dataset.uri."),
    Failure(_C.DATASET_INVALID, "DatasetInvalid", _F.USER_ERROR,
            "The data cannot be read as examples; the message names file and line."),
    Failure(_C.DATASET_TOO_SMALL, "DatasetTooSmall", _F.USER_ERROR,
            "No examples, or too few to hold some out."),
    Failure(_C.EXAMPLES_TOO_LONG, "ExamplesTooLong", _F.USER_ERROR,
            "Every example loses all its trained tokens at maxSequenceLength."),
    Failure(_C.MODEL_NOT_FOUND, "ModelNotFound", _F.USER_ERROR,
            "No model lies at model.uri, or not at that revision."),
    Failure(_C.MODEL_INVALID, "ModelInvalid", _F.USER_ERROR,
            "The model folder lacks its configuration, tokenizer or weights, or a file is damaged."),
    Failure(_C.CHAT_TEMPLATE_MISSING, "ChatTemplateMissing", _F.USER_ERROR,
            "The data is chat and the model's tokenizer has no chat template."),
    Failure(_C.OUTPUT_EXISTS, "OutputExists", _F.USER_ERROR,
            "output.uri already holds the results of another job."),
    Failure(_C.WILL_NOT_FIT, "WillNotFit", _F.USER_ERROR,
            "The estimate exceeds the GPU's memory; the message has the breakdown."),
    Failure(_C.STORAGE_ACCESS_DENIED, "StorageAccessDenied", _F.USER_ERROR,
            "Object storage refused the credentials."),
    Failure(_C.BUCKET_NOT_FOUND, "BucketNotFound", _F.USER_ERROR,
            "The bucket does not exist."),
    Failure(_C.HUB_ACCESS_DENIED, "HubAccessDenied", _F.USER_ERROR,
            "The hub refused access to the model or data set: a token or an accepted licence is missing."),
    Failure(_C.CHECKPOINT_UNUSABLE, "CheckpointUnusable", _F.USER_ERROR,
            "checkpoint.resumeFrom names a checkpoint that is not there, or of another model, method or data."),
    Failure(_C.GATE_FAILED, "GateFailed", _F.USER_ERROR,
            "The tuned model is outside a bound of evaluation.gates; its outputs are kept, marked in the manifest."),
    Failure(_C.OUT_OF_MEMORY, "OutOfMemory", _F.OUT_OF_MEMORY,
            "The accelerator's memory ran out."),
    Failure(_C.LOSS_NOT_FINITE, "LossNotFinite", _F.NON_FINITE,
            "The loss became NaN or infinite; a lower learning rate or fp32 helps."),
    Failure(_C.LOSS_DIVERGED, "LossDiverged", _F.USER_ERROR,
            "The loss shot up and stayed there; a lower learning rate or more warm-up helps."),
    Failure(_C.GRADIENTS_VANISHED, "GradientsVanished", _F.USER_ERROR,
            "The gradients were zero for several steps: nothing is learned."),
    Failure(_C.STORAGE_UNAVAILABLE, "StorageUnavailable", _F.STORAGE,
            "Object storage could not be reached, after retries."),
    Failure(_C.HUB_UNAVAILABLE, "HubUnavailable", _F.HUB_ACCESS,
            "The hub could not be reached, after retries."),
    Failure(_C.DISK_FULL, "DiskFull", _F.INFRASTRUCTURE,
            "The pod's disk is full: raise resources.ephemeralStorage."),
    Failure(_C.PREPARED_DATA_CHANGED, "PreparedDataChanged", _F.INFRASTRUCTURE,
            "The prepared shards in storage are not those that prepare wrote."),
    Failure(_C.RESULT_MISSING, "ResultMissing", _F.INFRASTRUCTURE,
            "A run said that it was complete, and its manifest is not in storage: it is trained again."),
    Failure(_C.COLLECTIVE_TIMEOUT, "CollectiveTimeout", _F.COLLECTIVE,
            "The processes of the run waited for each other in vain: one hangs, or the network between them does."),
    Failure(_C.RANK_LOST, "RankLost", _F.COLLECTIVE,
            "Another process of the run ended without a word: its pod's log or its node says why."),
    Failure(_C.INTERNAL_ERROR, "InternalError", _F.INFRASTRUCTURE,
            "An error that the trainer does not know: please report it with the log."),
    Failure(_C.PREEMPTED, "Preempted", _F.DISRUPTED,
            "SIGTERM came: the run has checkpointed and goes on in the next attempt."),
)  # fmt: skip

BY_CODE: dict[int, Failure] = {failure.code: failure for failure in FAILURES}

WITH_RESULT = (ExitCode.SUCCESS, ExitCode.GATE_FAILED)
"""With these a stage has told its result: a run outside a gate has all its outputs."""
KILLED = 137
"""128 + SIGKILL: the kernel's or kubelet's out-of-memory kill, or a grace period that ran out."""
TERMINATED = 143
"""128 + SIGTERM: a process that died of SIGTERM before the trainer's handler was in place."""
