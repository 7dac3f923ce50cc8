"""What a GPU is, by who says it first; and which products are known by name."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_contract.gpus import KNOWN, known_gpu, smallest_with
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.parse import parse_gpu_node
from finetune_operator.api.profile import FineTuneProfileSpec
from finetune_operator.api.views import GpuNode
from finetune_operator.policy.gpus import gpu_of
from tests.support.builders import Story, make_profile, make_spec

GIB, MIB = 1 << 30, 1 << 20
H200, L4 = "NVIDIA-H200", "NVIDIA-L4"


def node(product: str = H200, mebibytes: int = 143771, **labels: str) -> GpuNode:
    said = {"nvidia.com/gpu.product": product, "nvidia.com/gpu.memory": str(mebibytes), **labels}
    return parse_gpu_node({"metadata": {"name": f"{product}-{mebibytes}", "labels": said}})


MIXED = (node(), node(L4, 23034, pool="small"))
SELECT = {"nodeSelector": {"pool": "small"}}


@pytest.mark.parametrize(
    ("resources", "gpu", "nodes", "scheduling", "kind", "memory"),
    [
        ({"gpuMemory": "80Gi"}, {"memory": "40Gi"}, MIXED, {}, None, 80 * GIB),
        ({}, {"memory": "40Gi", "type": L4}, MIXED, {}, L4, 40 * GIB),
        ({"gpuType": H200}, {"memory": "40Gi", "type": L4}, MIXED, {}, H200, 143771 * MIB),
        ({"gpuType": L4}, {}, (node(L4, 11111),), {}, L4, 11111 * MIB),
        ({"gpuType": L4}, {}, (), {}, L4, 23034 * MIB),
        ({}, {}, MIXED, SELECT, L4, 23034 * MIB),
        ({}, {}, (node(), node()), {}, H200, 143771 * MIB),
        ({}, {}, MIXED, {}, None, None),
        ({}, {}, (), {}, None, None),
        ({"gpuType": "Unheard-Of"}, {}, MIXED, {}, "Unheard-Of", None),
    ],
    ids=[
        "the job's memory before all",
        "the profile before the nodes",
        "a type of the job's is not the profile's",
        "the nodes before what is known by name",
        "known by name",
        "nodes that the selector leaves",
        "all nodes of one kind",
        "nodes of several kinds",
        "nothing said",
        "a type that nothing knows",
    ],
)
def test_who_says_it_first(resources, gpu, nodes, scheduling, *, kind, memory) -> None:
    spec = FineTuneJobSpec.model_validate(make_spec(resources=resources, scheduling=scheduling))
    found = gpu_of(spec, FineTuneProfileSpec.model_validate({"gpu": gpu}), nodes)
    assert found is not None
    assert (found.type, found.memory_bytes) == (kind, memory)
    assert found.because


def test_it_is_settled_once_a_run_and_stands_in_the_status() -> None:
    story = Story(make_spec(), make_profile(gpu={"type": H200}))
    story.sees()
    story.profiles = (make_profile(gpu={"type": L4}),)
    story.sees()
    resolved = story.job.status.resolved
    assert resolved is not None
    assert resolved.gpu is not None
    assert (resolved.gpu.type, resolved.gpu.because) == (H200, f"{H200} is a H200")


def test_a_job_on_the_cpu_has_none() -> None:
    spec: dict[str, Any] = make_spec(resources={"gpusPerNode": 0})
    assert gpu_of(FineTuneJobSpec.model_validate(spec), FineTuneProfileSpec(), MIXED) is None


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("NVIDIA-H100-80GB-HBM3", "H100 80GB"),
        ("NVIDIA-H100-NVL", "H100 NVL"),
        ("NVIDIA-A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA-A100-80GB-PCIe", "A100 80GB"),
        ("Tesla-T4", "T4"),
        ("NVIDIA-A10G", "A10G"),
        ("NVIDIA-L40S", "L40S"),
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", None),
        ("NVIDIA-GeForce-RTX-9090", None),
    ],
)
def test_products_as_the_nodes_label_names_them(product, name) -> None:
    found = known_gpu(product)
    assert (found and found.name) == name


def test_the_smallest_that_is_large_enough() -> None:
    assert [gpu.memory_bytes for gpu in KNOWN] == sorted(gpu.memory_bytes for gpu in KNOWN)
    found = smallest_with(24 * GIB)
    assert found is not None
    assert found.name == "V100 32GB"
    assert smallest_with(1000 * GIB) is None
