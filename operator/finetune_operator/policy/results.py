"""What a finished stage leaves in the status: prepare fills data, estimate and choices; train fills the outputs."""

from __future__ import annotations

from datetime import datetime

from finetune_contract import paths
from finetune_contract.exit_codes import WITH_RESULT
from finetune_contract.outcome import Artifact, TerminationMessage, TrainResult
from finetune_operator.api.conditions import ConditionType as T
from finetune_operator.api.conditions import Reason
from finetune_operator.api.parse import format_time
from finetune_operator.api.status import ArtifactStatus, CheckpointStatus, Outputs, Progress
from finetune_operator.api.views import PodView, Stage
from finetune_operator.policy import queueing
from finetune_operator.policy.draft import Draft
from finetune_operator.policy.effective import Effective
from finetune_operator.policy.progress import shown


def result_of(pods: tuple[PodView, ...], stage: Stage) -> TerminationMessage | None:
    """Return the message in which a finished stage tells its result, or None if it was lost."""
    for pod in pods:
        for container in pod.containers:
            said = TerminationMessage.decode(container.message) if container.exit_code in WITH_RESULT else None
            if said and said.sha256 and _tells(said, stage):
                return said
    return None


def _tells(said: TerminationMessage, stage: Stage) -> bool:
    if stage == "train":
        return said.trained is not None
    return said.prepared is not None or (said.stage == "prepare" and said.trained is not None)  # adopted


def prepared_in_pod(draft: Draft, effective: Effective, pods: tuple[PodView, ...], now: datetime) -> bool:
    """Take over what the training pod has prepared, once it tells; its Job goes on. Tell whether the job has ended."""
    job, said = draft.status.job, None if draft.is_true(T.PREPARED) else result_of(pods, "prepare")
    if said and said.trained and not said.exit_code:
        succeeded(draft, effective, said, now)
        return True
    if said and said.prepared:
        prepared(draft, said)
        draft.set(job=job)
    return False


def prepared(draft: Draft, said: TerminationMessage) -> None:
    """Take over what prepare found."""
    found, chosen = said.prepared, draft.status.resolved
    if found is None or chosen is None:  # result_of and the run's beginning exclude it
        return
    resolved = chosen.model_copy(update={"prepared_sha256": said.sha256, "training": found.resolved})
    draft.set(dataset=found.dataset, estimate=found.estimate, resolved=resolved, job=None)
    counts = f"{found.dataset.train_examples} examples to train on, {found.dataset.validation_examples} held out"
    warned = f"; {len(found.dataset.warnings)} warnings in status.dataset" if found.dataset.warnings else ""
    draft.condition(T.PREPARED, True, Reason.PREPARED, counts + warned)


def succeeded(draft: Draft, effective: Effective, said: TerminationMessage, now: datetime) -> None:
    """Take over what train produced: the job is complete."""
    uri = take_over(draft, effective, said, now)
    adopted = said.trained is not None and said.trained.adopted_run is not None
    if adopted:
        draft.condition(T.PREPARED, True, Reason.ADOPTED, "an earlier run with the same configuration is complete")
    elif not draft.is_true(T.PREPARED):  # in the training pod, whose first word was lost
        draft.condition(T.PREPARED, True, Reason.PREPARED)
    draft.condition(T.PODS_READY, False, Reason.SUCCEEDED, "the pods have ended")
    queueing.leave(draft, Reason.SUCCEEDED, "the pods have ended")
    draft.condition(T.RUNNING, False, Reason.SUCCEEDED, "training has ended")
    draft.condition(T.FAILED, False, Reason.NOT_FAILED)
    whose = "the outputs of an earlier run with the same configuration" if adopted else "the outputs"
    draft.condition(T.COMPLETE, True, Reason.SUCCEEDED, f"{whose} are at {uri}{_remarks(said.trained)}")


def take_over(draft: Draft, effective: Effective, said: TerminationMessage, now: datetime) -> str:
    """Take over outputs, evaluation and progress, which a run below a gate has as well; return the run's folder."""
    result = said.trained
    run = (result and result.adopted_run) or draft.status.run or 1
    uri = paths.run_uri(effective.spec.output.uri, run)
    if result is None:  # result_of excludes it
        return uri
    draft.set(
        run=run,  # an adopted one counts as this job's, so that its next run has a folder of its own
        outputs=_outputs(uri, result, said.sha256 or ""),
        usage=result.usage or draft.status.usage,
        training=result.training,
        evaluation=result.evaluation,
        completion_time=format_time(now),
        progress=_final(draft.status.progress, result, now),
        checkpoint=_checkpoint(uri, result) or draft.status.checkpoint,
    )
    written = Reason.MANIFEST_WRITTEN if result.adopted_run is None else Reason.ADOPTED
    draft.condition(T.OUTPUTS_READY, True, written, f"the outputs are at {uri}")
    return uri


def _remarks(result: TrainResult | None) -> str:
    if result is None:
        return ""
    early = f"; stopped early at step {result.step}" if result.training and result.training.stopped_early else ""
    warned = {"training": result.training, "evaluation": result.evaluation}
    counts = {name: len(part.warnings) for name, part in warned.items() if part and part.warnings}
    return early + "".join(f"; {count} warnings in status.{name}" for name, count in counts.items())


def _outputs(uri: str, result: TrainResult, sha256: str) -> Outputs:
    return Outputs(
        uri=uri,
        manifest=paths.join(uri, paths.MANIFEST),
        manifest_sha256=sha256,
        adapter=_artifact(uri, result.artifacts.get("adapter")),
        merged=_artifact(uri, result.artifacts.get("merged")),
        gguf=_artifact(uri, result.artifacts.get("gguf")),
        report=paths.join(uri, paths.REPORT),
        hub=result.hub,
        warnings=result.warnings,
    )


def _artifact(uri: str, artifact: Artifact | None) -> ArtifactStatus | None:
    return ArtifactStatus(uri=paths.join(uri, artifact.path), **artifact.model_dump()) if artifact else None


def _checkpoint(uri: str, result: TrainResult) -> CheckpointStatus | None:
    if result.checkpoint_step is None:
        return None
    return CheckpointStatus(
        uri=paths.join(uri, paths.CHECKPOINTS),
        step=result.checkpoint_step,
        resumed_from_step=result.resumed_from_step,
    )


def _final(progress: Progress | None, result: TrainResult, now: datetime) -> Progress:
    known = progress or Progress(updated_at=format_time(now))
    update = {
        "step": result.step,
        "total_steps": result.step,
        "percent": 100,
        "eta_seconds": 0,
        "eta": "0s",
        "loss": shown(result.loss) if result.loss is not None else known.loss,
        "eval_loss": shown(result.eval_loss) if result.eval_loss is not None else known.eval_loss,
        "updated_at": format_time(now),
    }
    return known.model_copy(update=update)
