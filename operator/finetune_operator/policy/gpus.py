"""What one GPU of a job is: from the spec, the profile, the nodes' labels, or the name of a known product.

Settled once a run and shown in status.resolved.gpu, so that a node that comes or goes does not change a run.
"""

from __future__ import annotations

from finetune_contract.gpus import known_gpu
from finetune_operator.api import constants as c
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.profile import FineTuneProfileSpec
from finetune_operator.api.quantities import quantity
from finetune_operator.api.status import GpuStatus
from finetune_operator.api.views import GpuNode

_MIB = 1 << 20


def gpu_of(spec: FineTuneJobSpec, profile: FineTuneProfileSpec, nodes: tuple[GpuNode, ...]) -> GpuStatus | None:
    """Return the GPU, as far as anything says what it is; None for a job without one.

    First what the job says, then its profile, then the nodes that it may go to if all are of one kind, then what is
    known of the product's name.
    """
    if not spec.resources.gpus:
        return None
    kind = spec.resources.gpu_type or profile.gpu.type
    fitting = _fitting(spec, kind, nodes)
    products = {node.labels.get(c.LABEL_GPU_PRODUCT) for node in fitting}
    kind = kind or (products.pop() if len(products) == 1 else None)
    memory, because = _memory(spec, profile, kind, fitting)
    return GpuStatus(type=kind, memory_bytes=memory, because=because)


def _memory(
    spec: FineTuneJobSpec, profile: FineTuneProfileSpec, kind: str | None, nodes: tuple[GpuNode, ...]
) -> tuple[int | None, str]:
    if spec.resources.gpu_memory is not None:
        return int(quantity(spec.resources.gpu_memory)), "resources.gpuMemory"
    if profile.gpu.memory is not None and spec.resources.gpu_type in (None, profile.gpu.type):
        return int(quantity(profile.gpu.memory)), "the profile's gpu.memory"
    said = {node.labels.get(c.LABEL_GPU_MEMORY, "") for node in nodes}
    if len(said) == 1 and (mebibytes := said.pop()).isdecimal():
        return int(mebibytes) * _MIB, f"the nodes' label {c.LABEL_GPU_MEMORY}"
    known = known_gpu(kind) if kind else None
    if known:
        return known.memory_bytes, f"{kind} is a {known.name}"
    if len(said) > 1:
        return None, "the nodes have GPUs of several sizes: name one in resources.gpuType"
    return None, "nothing says: set resources.gpuMemory"


def _fitting(spec: FineTuneJobSpec, kind: str | None, nodes: tuple[GpuNode, ...]) -> tuple[GpuNode, ...]:
    """Return the nodes that the job's selector and GPU type leave."""
    wanted = {**(spec.scheduling.node_selector or {}), **({c.LABEL_GPU_PRODUCT: kind} if kind else {})}
    return tuple(node for node in nodes if wanted.items() <= node.labels.items())
