"""How a stage ends: the manifest in storage and the termination message in the pod's status.

The kubelet keeps 4096 bytes of a message and divides 12288 by the number of containers, so ours stays within
2000 (job-traps 18): summary and sha256; the rest lies in storage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from finetune_contract.evaluation import EvaluationSummary, shorter
from finetune_contract.model import Model
from finetune_contract.prepared import DatasetCounts, DatasetSummary, Estimate, Resolved

MAX_MESSAGE_BYTES = 2000
MAX_LOCAL_BYTES = 1 << 16
"""Of the check stage, which runs beside its reader and not in a pod."""

Stage = Literal["prepare", "fetch", "train", "collect", "check"]
Warnings = Annotated[tuple[Annotated[str, Field(max_length=1024)], ...], Field(max_length=20)]


class OutputFile(Model):
    """One file of the manifest."""

    path: str
    """Relative to the run's folder."""
    sha256: str
    bytes: int


class Artifact(Model):
    """One kind of output: a folder or a file."""

    path: str
    """Relative to the run's folder."""
    sha256: str
    """sha256 of the manifest lines "<sha256>  <path>\\n" of its files, sorted by path: equal content, equal digest."""
    bytes: int


def artifact(path: str, files: Iterable[OutputFile]) -> Artifact:
    """Return the artifact that these files of a manifest make up."""
    ordered = sorted(files, key=lambda file: file.path)
    lines = "".join(f"{file.sha256}  {file.path}\n" for file in ordered)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    return Artifact(path=path, sha256=digest, bytes=sum(file.bytes for file in ordered))


class Manifest(Model):
    """`manifest.json`: written last, so that its presence means that all outputs are there."""

    schema_version: int = 1
    job_name: str
    job_namespace: str
    job_uid: str
    run: int
    config_hash: str
    method: str
    objective: str | None = None
    base_model: str
    base_revision: str | None = None
    dataset: str
    created: str
    """RFC 3339."""
    files: tuple[OutputFile, ...]
    artifacts: dict[str, Artifact]
    """By name: adapter, merged, gguf."""
    merged_from: str | None = None
    """What the adapter was merged into, where there are merged weights of one."""
    evaluation: EvaluationSummary | None = None
    gates_passed: bool | None = None
    """False marks weights below a bound of evaluation.gates: they are kept, and the job has failed. Absent without gates."""
    versions: dict[str, str] = {}
    warnings: Warnings = ()
    """What is not as asked for, though the run has succeeded."""


class Pushed(Model):
    """hub.json: what was pushed to the hub, and that it was."""

    repo: str
    """Repository, as organisation/name."""
    commit: str
    """Commit that holds the results."""


class PrepareResult(Model):
    """What prepare found."""

    dataset: DatasetSummary
    estimate: Estimate
    resolved: Resolved


class Usage(Model):
    """What a run has used, over all attempts: it fills `status.usage`. Work that a crash lost is not in it."""

    gpu_seconds: float | None = None
    """GPU time of the training pods; absent without a GPU."""
    trained_tokens: int | None = None
    """Tokens trained on, prompts included."""


class TrainingSummary(Model):
    """How the training went, in words: it fills `status.training`."""

    best_step: int | None = None
    """Step whose weights are exported: the one with the lowest held-out loss."""
    stopped_early: Annotated[str, Field(max_length=512)] | None = None
    """Why the run ended before its last step, if it did."""
    warnings: Annotated[tuple[Annotated[str, Field(max_length=512)], ...], Field(max_length=20)] = ()
    """What an expert would change next time."""


class TrainResult(Model):
    """What train produced."""

    step: int
    loss: float | None = None
    eval_loss: float | None = None
    resumed_from_step: int | None = None
    checkpoint_step: int | None = None
    artifacts: dict[str, Artifact] = {}
    evaluation: EvaluationSummary | None = None
    training: TrainingSummary | None = None
    warnings: Warnings = ()
    hub: Pushed | None = None
    usage: Usage | None = None
    adopted_run: int | None = None
    """Number of the earlier run whose results these are, where nothing was trained (output.ifExists: Adopt)."""


class TerminationMessage(Model):
    """The last word of a container. `encode` keeps it within MAX_MESSAGE_BYTES."""

    stage: Stage
    exit_code: Annotated[int, Field(ge=0)]
    reason: str
    """A reason of the table of exit codes, or Completed."""
    message: str = ""
    """One sentence for the user: which field or line, what is wrong, what to do."""
    sha256: str | None = None
    """Of prepared.json or manifest.json."""
    prepared: PrepareResult | None = None
    trained: TrainResult | None = None
    checked: DatasetCounts | None = None
    log_tail: str = ""

    def encode(self, limit: int = MAX_MESSAGE_BYTES) -> str:
        """Return JSON of at most `limit` bytes, giving up, in this order: log tail, reasons for what was
        chosen, warnings of data and training, comparisons and gates that were passed (both stand in the manifest),
        the end of the message.
        """
        for candidate in self._shorter():
            text = candidate.to_json()
            if len(text.encode()) <= limit:
                return text
        raise ValueError(f"termination message cannot be cut to {limit} bytes")

    def _shorter(self) -> list[TerminationMessage]:
        tails = [self.model_copy(update={"log_tail": self.log_tail[-n:] if n else ""}) for n in (500, 200, 0)]
        bare = tails[-1]
        if bare.prepared:
            resolved = bare.prepared.resolved.model_copy(update={"because": {}})
            bare = bare.model_copy(update={"prepared": bare.prepared.model_copy(update={"resolved": resolved})})
            tails.append(bare)
            for kept in (5, 2, 0):
                dataset = self._warnings_cut(kept)
                prepared = (
                    self.prepared.model_copy(update={"resolved": resolved, "dataset": dataset})
                    if self.prepared
                    else None
                )
                tails.append(bare := bare.model_copy(update={"prepared": prepared}))
        if bare.trained and bare.trained.training and bare.trained.training.warnings:
            training = bare.trained.training.model_copy(update={"warnings": ()})
            tails.append(
                bare := bare.model_copy(update={"trained": bare.trained.model_copy(update={"training": training})})
            )
        if bare.trained and bare.trained.evaluation:
            for evaluation in shorter(bare.trained.evaluation):
                trained = bare.trained.model_copy(update={"evaluation": evaluation})
                tails.append(bare := bare.model_copy(update={"trained": trained}))
        if bare.trained and bare.trained.warnings:
            for size in (200, 80):
                warnings = tuple(_cut(warning, size) for warning in bare.trained.warnings[:3])
                trained = bare.trained.model_copy(update={"warnings": warnings})
                tails.append(bare.model_copy(update={"trained": trained}))
            bare = tails[-1]
        return tails + [bare.model_copy(update={"message": _cut(bare.message, size)}) for size in (900, 600, 300, 100)]

    def _warnings_cut(self, kept: int) -> DatasetSummary | None:
        if not self.prepared:
            return None
        warnings = tuple(_cut(w, 160) for w in self.prepared.dataset.warnings[:kept])
        return self.prepared.dataset.model_copy(update={"warnings": warnings})

    @classmethod
    def decode(cls, text: str) -> TerminationMessage | None:
        """Return the message, or None if the text is not one: a foreign image, a kill, a cut-off JSON."""
        try:
            value = json.loads(text)
            return cls.model_validate(value) if isinstance(value, dict) else None
        except ValueError:
            return None


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"
