"""The run configuration of an attempt, as the trainer reads it from the pod's annotation."""

from __future__ import annotations

from finetune_contract.run_config import Device, JobIdentity, RunConfig
from finetune_contract.spec import TuningSpec
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.profile import FineTuneProfileSpec
from finetune_operator.api.quantities import quantity
from finetune_operator.api.scalars import Quantity
from finetune_operator.api.views import JobView


def build_run_config(
    job: JobView, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, *, run: int, attempt: int
) -> RunConfig:
    """Return the configuration of one attempt; the hash of the prepared data is in it once prepare has run."""
    resolved = job.status.resolved
    gpus = spec.resources.gpus
    tuning = {name: getattr(spec, name) for name in TuningSpec.model_fields}
    if resolved and resolved.micro_batch_size:
        less = {"micro_batch_size": resolved.micro_batch_size}
        tuning["hyperparameters"] = spec.hyperparameters.model_copy(update=less)
    return RunConfig(
        job=JobIdentity(name=job.name, namespace=job.namespace, uid=job.uid, run=run, attempt=attempt),
        spec=TuningSpec(**tuning),
        device=Device(
            gpus=gpus,
            nodes=spec.resources.nodes,
            gpu_memory_bytes=resolved.gpu.memory_bytes if resolved and resolved.gpu and gpus else None,
            gpu_type=resolved.gpu.type if resolved and resolved.gpu and gpus else None,
        ),
        cache_bytes=_bytes(profile.cache.max_size),
        config_hash=resolved.config_hash if resolved else "",
        prepared_sha256=resolved.prepared_sha256 if resolved else None,
    )


def _bytes(size: Quantity | None) -> int | None:
    return None if size is None else int(quantity(size))
