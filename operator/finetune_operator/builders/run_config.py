"""The run configuration of an attempt, as the trainer reads it from the pod's annotation."""

from __future__ import annotations

from decimal import Decimal

from finetune_contract.run_config import Device, JobIdentity, RunConfig
from finetune_contract.spec import TuningSpec
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.profile import FineTuneProfileSpec
from finetune_operator.api.views import JobView

_UNITS: dict[str, Decimal] = {
    "m": Decimal("0.001"),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", start=1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)},
}


def build_run_config(
    job: JobView, spec: FineTuneJobSpec, profile: FineTuneProfileSpec, *, run: int, attempt: int
) -> RunConfig:
    """Return the configuration of one attempt; the hash of the prepared data is in it once prepare has run."""
    resolved = job.status.resolved
    memory = spec.resources.gpu_memory or profile.gpu.memory
    gpus = 1 if spec.resources.gpus_per_node is None else spec.resources.gpus_per_node
    return RunConfig(
        job=JobIdentity(name=job.name, namespace=job.namespace, uid=job.uid, run=run, attempt=attempt),
        spec=TuningSpec(**{name: getattr(spec, name) for name in TuningSpec.model_fields}),
        device=Device(gpus=gpus, gpu_memory_bytes=quantity_bytes(memory) if memory is not None and gpus else None),
        config_hash=resolved.config_hash if resolved else "",
        prepared_sha256=resolved.prepared_sha256 if resolved else None,
    )


def quantity_bytes(quantity: str | int) -> int:
    """Return a Kubernetes quantity as a number of bytes: 80Gi, 500M, 1073741824."""
    text = str(quantity)
    number = text.rstrip("".join(set("".join(_UNITS))))
    return int(Decimal(number) * _UNITS.get(text[len(number) :], Decimal(1)))
