"""FineTuneJob's status: what the operator writes, once a reconcile."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from finetune_contract.evaluation import EvaluationSummary
from finetune_contract.exit_codes import FailureClass
from finetune_contract.model import Model
from finetune_contract.outcome import Artifact, Pushed, TrainingSummary, Usage, Warnings
from finetune_contract.prepared import DatasetSummary, Estimate, Resolved
from finetune_operator.api.conditions import Phase

Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Anything = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]


class Condition(Model):
    """One aspect of the job's state (KEP-1623)."""

    type: Annotated[str, Field(max_length=316)]
    """What is true or not."""
    status: Literal["True", "False", "Unknown"]
    """Whether it is."""
    reason: Annotated[str, Field(max_length=1024)]
    """Why, in one CamelCase word."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, for a person."""
    last_transition_time: Time
    """When status changed."""
    observed_generation: int | None = None
    """Generation of the spec that this was found for."""


class Restarts(Model):
    """How often the job was started again."""

    failures: int = 0
    """After failures, which lifecycle.retries.max bounds. A failure that nothing follows is not counted."""
    disruptions: int = 0
    """After preemptions, evictions and the like, without charge."""


class Progress(Model):
    """Where training stands, as the trainer reports it."""

    step: int | None = None
    """Optimizer steps done."""
    total_steps: int | None = None
    """Optimizer steps of the run."""
    epoch: float | None = None
    """Passes over the data done."""
    percent: int | None = None
    """Share done."""
    eta_seconds: int | None = None
    """Estimated time that training still takes."""
    eta: str | None = None
    """The same for people, as 3m20s."""
    loss: float | None = None
    """Training loss."""
    eval_loss: float | None = None
    """Loss on the held-out part."""
    learning_rate: float | None = None
    """Current learning rate."""
    tokens_per_second: float | None = None
    """Tokens trained on a second."""
    mfu: float | None = None
    """Share of the GPU's peak that the model's arithmetic uses, 0 to 1; absent on a CPU or an unknown card."""
    overfitting_since_step: int | None = None
    """Step since which the held-out loss rises while the training loss falls; its weights are kept."""
    last_step_time: Time | None = None
    """When the last step was reported."""
    updated_at: Time
    """When the trainer reported."""


class CheckpointStatus(Model):
    """The newest checkpoint."""

    uri: str | None = None
    """Folder of the checkpoints."""
    step: int | None = None
    """Step of the newest committed one."""
    resumed_from_step: int | None = None
    """Step that the current attempt went on from."""


class LastFailure(Model):
    """How the last attempt that failed ended."""

    failure_class: Annotated[FailureClass, Field(alias="class")]
    """What kind of failure it is, which decides what is done."""
    reason: str
    """The failure in one word."""
    exit_code: int | None = None
    """Exit code of the container."""
    attempt: int
    """Attempt that failed."""
    stage: str
    """prepare, fetch or train."""
    pod: str | None = None
    """Pod that failed."""
    message: str = ""
    """What is wrong and what to do."""
    log_tail: str = ""
    """End of the pod's log."""
    time: Time
    """When the operator saw it."""


class QueueStatus(Model):
    """Where the job stands with Kueue."""

    name: str | None = None
    """The LocalQueue."""
    workload: str | None = None
    """Kueue's Workload of the current attempt."""
    waiting_since: Time | None = None
    """Since when the current attempt waits for quota; absent while it has it."""
    waited_seconds: int = 0
    """Time that the run has waited for quota before, all attempts together."""


class JobReference(Model):
    """The batch Job of the current attempt, once it was seen."""

    name: str
    """Its name."""
    uid: str
    """Its uid."""


class ArtifactStatus(Artifact):
    """One kind of output."""

    uri: str
    """Where it lies."""


class Outputs(Model):
    """Where the results lie."""

    uri: str
    """Folder of the run."""
    manifest: str
    """The manifest: every file with size and sha256."""
    manifest_sha256: str
    """sha256 of the manifest."""
    adapter: ArtifactStatus | None = None
    """The adapter, as PEFT saves it."""
    merged: ArtifactStatus | None = None
    """The merged weights, or all weights with method Full."""
    gguf: ArtifactStatus | None = None
    """GGUF files and an Ollama Modelfile."""
    report: str | None = None
    """The report for people."""
    hub: Pushed | None = None
    """Where they were pushed to."""
    warnings: Warnings = ()
    """What could not be done as asked, though the job has succeeded."""


class ProfileSnapshot(Model):
    """The profile as it was when the run began: later changes do not touch a run."""

    name: str
    """Its name."""
    generation: int
    """Its generation."""
    spec: Anything
    """Its spec."""


class GpuStatus(Model):
    """The GPU that the estimate was held against."""

    type: str | None = None
    """Its product, where it is known."""
    memory_bytes: int | None = None
    """Its memory; absent where nothing says it, and then nothing is refused for want of it."""
    because: str = ""
    """What says so."""


class ResolvedStatus(Model):
    """Everything that was chosen for the user."""

    config_hash: str
    """sha256 of the effective spec without lifecycle and priority."""
    image: str
    """Image of the trainer."""
    gpus: int
    """GPUs of the job."""
    gpu: GpuStatus | None = None
    """What one of them is."""
    profile: ProfileSnapshot | None = None
    """The profile."""
    defaults: Anything | None = None
    """Fields of the spec that the profile's defaults have filled in."""
    prepares_in_pod: bool | None = None
    """Whether the training pod prepares the data itself."""
    prepared_sha256: str | None = None
    """sha256 of prepared.json."""
    training: Resolved | None = None
    """What prepare chose."""
    nodes: int | None = None
    """Training pods of the next attempt, where the queue had no quota for resources.nodes."""
    micro_batch_size: int | None = None
    """Largest micro-batch of the next attempt, since memory ran out with a larger one; batchSize stays what it is."""


class FineTuneJobStatus(Model):
    """What is known about the job."""

    observed_generation: int | None = None
    """Generation of the spec that this status is about."""
    phase: Phase | None = None
    """One word, computed from the conditions."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=32)] = ()
    """The truth about the job."""
    start_time: Time | None = None
    """When the operator took the job up."""
    suspended_seconds: int | None = None
    """Time that the job was suspended, which deadlines do not count."""
    training_start_time: Time | None = None
    """When the trainer first worked."""
    completion_time: Time | None = None
    """When the job ended."""
    run: int | None = None
    """Number of the run."""
    rerun: str | None = None
    """Value of the annotation finetuning.dev/rerun that this run is for."""
    attempt: int | None = None
    """Number of the current attempt."""
    job: JobReference | None = None
    """The batch Job of the current attempt, once it was seen."""
    queue: QueueStatus | None = None
    """Where the job stands with Kueue; absent for a job in no queue."""
    restarts: Restarts | None = None
    """How often the job was started again."""
    progress: Progress | None = None
    """Where training stands."""
    estimate: Estimate | None = None
    """Memory of one GPU at the peak."""
    dataset: DatasetSummary | None = None
    """What the data is."""
    checkpoint: CheckpointStatus | None = None
    """The newest checkpoint."""
    last_failure: LastFailure | None = None
    """How the last failed attempt ended."""
    usage: Usage | None = None
    """What the run has used."""
    training: TrainingSummary | None = None
    """How the training went, in words."""
    evaluation: EvaluationSummary | None = None
    """Base against tuned."""
    outputs: Outputs | None = None
    """Where the results lie."""
    resolved: ResolvedStatus | None = None
    """Everything that was chosen for the user."""

    def condition(self, kind: str) -> Condition | None:
        """Return a condition by its type."""
        return next((item for item in self.conditions if item.type == kind), None)
