"""config.yaml: a FineTuneJob with everything said that was chosen, so that the run can be repeated.

`finetune run config.yaml` prepares the same examples in the same order and takes the same steps: on the same CPU with
as many threads it ends in the same adapter, byte for byte. A GPU adds in another order each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from finetune_contract.spec import Method

if TYPE_CHECKING:
    from finetune_trainer.outputs.export import Lineage

_HEAD = """\
# Repeats run {run} of {name} with everything said that was chosen for it: finetune run config.yaml
# The output is another one, since the first holds this run's results.
{versions}
"""


def repeating_job(lineage: Lineage) -> str:
    """Return the job as YAML."""
    from finetune_trainer.outputs.export import versions

    job = lineage.config.job
    body = {
        "apiVersion": "finetuning.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": job.name},
        "spec": _spec(lineage),
    }
    head = _HEAD.format(
        run=job.run,
        name=f"{job.namespace}/{job.name}",
        versions="\n".join(f"# {package} {version}" for package, version in versions().items()),
    )
    return head + yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=120)


def _spec(lineage: Lineage) -> dict[str, Any]:
    config, resolved = lineage.config, lineage.prepared.resolved
    spec: dict[str, Any] = config.spec.to_wire()
    if config.spec.model.uri.startswith("hf://") and lineage.revision:
        spec["model"]["revision"] = lineage.revision
    if config.spec.dataset.uri:  # several sources may have several formats
        spec["dataset"]["format"] = str(lineage.prepared.dataset.format)
    spec["output"]["uri"] = f"{config.spec.output.uri.rstrip('/')}-repeated"
    if config.spec.method is not Method.FULL:
        spec["lora"] = {**spec.get("lora", {}), "alpha": resolved.lora_alpha}
    spec["hyperparameters"] = _hyperparameters(lineage, spec.get("hyperparameters", {}))
    spec["evaluation"] = {**spec.get("evaluation", {}), "everySteps": resolved.eval_every_steps}
    spec["checkpoint"] = {**spec.get("checkpoint", {}), "everySteps": resolved.checkpoint_every_steps}
    nodes = {"nodes": config.device.nodes} if config.device.nodes > 1 else {}
    spec["resources"] = {**nodes, "gpusPerNode": config.device.gpus}
    return spec


def _hyperparameters(lineage: Lineage, asked: dict[str, Any]) -> dict[str, Any]:
    """Return them with what prepare and the dry run chose; steps instead of passes, which depend on the data."""
    resolved, recomputed = lineage.prepared.resolved.to_wire(), lineage.training.gradient_checkpointing
    if recomputed is not None:
        resolved["gradientCheckpointing"] = recomputed
    chosen = ("learningRate", "batchSize", "maxSequenceLength", "packing", "precision", "gradientCheckpointing", "loss")
    return {
        **{name: value for name, value in asked.items() if name != "epochs"},
        "maxSteps": resolved["totalSteps"],
        "microBatchSize": lineage.training.micro_batch_size or resolved["microBatchSize"],
        **{name: resolved[name] for name in chosen},
    }
