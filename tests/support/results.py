"""What a complete run leaves in storage, as far as later readers ask: an adapter of three bytes and the figures."""

from __future__ import annotations

import hashlib
from pathlib import Path

from finetune_contract import paths
from finetune_contract.evaluation import EvaluationSummary, GateResult, Scores
from finetune_contract.outcome import Artifact, Manifest, OutputFile
from finetune_contract.run_config import RunConfig
from finetune_trainer.outputs.results import EvaluationFile
from finetune_trainer.outputs.summary import Training


def write_run(config: RunConfig, *, gates: tuple[GateResult, ...] = ()) -> Path:
    """Write the results of a run into its folder, and return that."""
    base, tuned = Scores(loss=2.0), Scores(loss=1.0)
    run = Path(config.run_uri.removeprefix("file://"))
    (run / "adapter").mkdir(parents=True)
    (run / "adapter" / "a").write_text("abc")
    training = Training(steps=6, loss=1.5, resumed_from_step=4, trained_tokens=100)
    (run / paths.EVALUATION).write_text(EvaluationFile(base=base, tuned=tuned, training=training).to_json())
    names = ("adapter/a", paths.EVALUATION)
    manifest = Manifest(
        job_name=config.job.name,
        job_namespace=config.job.namespace,
        job_uid=config.job.uid,
        run=config.job.run,
        config_hash=config.config_hash,
        method="LoRA",
        base_model="m",
        dataset="d",
        created="2026-01-01T00:00:00+00:00",
        files=tuple(_listed(run, name) for name in names),
        artifacts={"adapter": Artifact(path="adapter", sha256="1" * 64, bytes=3)},
        evaluation=EvaluationSummary(base=base, tuned=tuned, gates=gates),
    )
    (run / paths.MANIFEST).write_text(manifest.to_json())
    return run


def _listed(run: Path, name: str) -> OutputFile:
    content = (run / name).read_bytes()
    return OutputFile(path=name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
