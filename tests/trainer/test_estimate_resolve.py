"""What a user leaves open is chosen from method, data, model and GPU, and the reason is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.fitting import ResolveError
from finetune_contract.prepared import Resolved
from finetune_contract.resolve import Choice, DataFacts, choose, resolve
from finetune_contract.run_config import Device
from finetune_contract.shape import ModelShape
from finetune_contract.spec import TuningSpec
from finetune_contract.would_fit import what_would_fit
from finetune_trainer.training.cpu import multiplies_bfloat16

GIB = 1 << 30
LLAMA_8B = ModelShape.from_config_json(
    {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
     "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072}
)  # fmt: skip
CPU = Device()


def gpu(gibibytes: int | None, gpus: int = 1) -> Device:
    return Device(gpus=gpus, gpu_memory_bytes=gibibytes * GIB if gibibytes else None)


def spec(method: str = "LoRA", **fields: Any) -> TuningSpec:
    place = {"uri": "s3://bucket/x"}
    return TuningSpec.model_validate(
        {"method": method, "model": place, "dataset": place, "output": place, "hyperparameters": fields}
    )


def facts(longest: int = 500, most: int | None = None, mean: float = 300) -> DataFacts:
    return DataFacts(DatasetFormat.MESSAGES, longest=longest, most=most or longest, mean=mean)


def chosen(
    wanted: TuningSpec, device: Device = CPU, data: DataFacts | None = None, *, limit: int | None = None
) -> Choice:
    return choose(wanted, device=device, facts=data or facts(), shape=LLAMA_8B, limit=limit)


def resolved(wanted: TuningSpec, *, examples: int = 1000) -> Resolved:
    return resolve(wanted, chosen(wanted), train_examples=examples)


@pytest.mark.parametrize(("method", "rate"), [("LoRA", 2e-4), ("QLoRA", 2e-4), ("Full", 1e-5)])
def test_the_learning_rate_follows_the_method(method: str, rate: float) -> None:
    found = resolved(spec(method))
    assert found.learning_rate == rate
    assert found.because["learningRate"] == f"usual for {method}"
    assert found.lora_alpha == (None if method == "Full" else 16)


@pytest.mark.parametrize(
    ("device", "fast", "precision"),
    [
        pytest.param(gpu(24), False, "bfloat16", id="a GPU"),
        pytest.param(CPU, True, "bfloat16", id="a CPU with units"),
        pytest.param(CPU, False, "float32", id="a CPU without"),
    ],
)
def test_the_precision_is_what_the_device_computes_fast(device: Device, fast: bool, precision: str) -> None:
    found = choose(spec(), device=device, facts=facts(), shape=LLAMA_8B, fast_bfloat16=fast)
    assert found.precision == precision
    assert found.because["precision"]


@pytest.mark.parametrize(
    ("cpuinfo", "has_units"),
    [
        ("flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx512_bf16\n", False),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("Features\t: fp asimd\n", False),
        ("processor\t: 0\n", False),
    ],
    ids=["AMX", "AVX-512", "Arm with BFMMLA", "Arm", "no word of it"],
)
def test_what_the_cpu_says_of_itself(cpuinfo: str, has_units: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert multiplies_bfloat16(tmp_path / "cpuinfo") is has_units


def test_what_the_user_gave_is_kept_and_not_explained() -> None:
    given = {
        "learningRate": 5e-5,
        "maxSequenceLength": 777,
        "microBatchSize": 2,
        "precision": "float32",
        "packing": True,
    }
    found = resolved(spec(**given, epochs=1, gradientCheckpointing=True, loss="all"))
    assert (found.learning_rate, found.max_sequence_length, found.micro_batch_size) == (5e-5, 777, 2)
    assert (found.precision, found.packing, found.gradient_checkpointing, found.loss) == ("float32", True, True, "all")
    assert not set(found.because) & {*given, "gradientCheckpointing", "loss"}


@pytest.mark.parametrize(
    ("fields", "examples", "steps"),
    [
        ({}, 1000, 189),  # 63 steps an epoch, the last one smaller
        ({"epochs": 1}, 16, 1),
        ({"epochs": 0.5}, 1000, 32),
        ({"maxSteps": 7}, 1000, 7),
        ({"epochs": 2, "batchSize": 1}, 5, 10),
    ],
)
def test_steps_are_counted_in_examples(fields: dict[str, Any], examples: int, steps: int) -> None:
    found = resolved(spec(**fields), examples=examples)
    assert found.total_steps == steps
    assert found.eval_every_steps == found.checkpoint_every_steps == max(1, steps // 10)


@pytest.mark.parametrize(
    ("data", "limit", "length", "why"),
    [
        (facts(longest=500), None, 512, "holds the longest example (500 tokens)"),
        (facts(longest=512), None, 512, "holds the longest example"),
        (facts(longest=9), None, 64, "holds the longest example"),
        (facts(longest=5000, most=900), None, 960, "holds 99.5% of the examples, the rest is far longer"),
        (facts(longest=5000), 2000, 2000, "the model's limit; the longest example has 5000 tokens"),
        (facts(longest=50000), 131072, 8192, "the most that is chosen without being asked"),
    ],
    ids=["longest", "exact", "short", "outliers", "model's limit", "sane"],
)
def test_the_sequence_length_follows_the_data(data: DataFacts, limit: int | None, length: int, why: str) -> None:
    found = chosen(spec(), data=data, limit=limit)
    assert found.max_sequence_length == length
    assert why in found.because["maxSequenceLength"]


@pytest.mark.parametrize(
    ("device", "fields", "micro_batch", "recompute"),
    [
        (CPU, {}, 8, False),
        (CPU, {"batchSize": 12}, 4, False),
        (CPU, {"batchSize": 15}, 1, False),
        (gpu(80), {}, 16, False),
        (gpu(80, gpus=4), {}, 4, False),
        (gpu(40), {}, 8, False),
        (gpu(24), {}, 2, False),
        (gpu(20), {}, 1, False),
        (gpu(19), {}, 4, True),
        (gpu(20), {"gradientCheckpointing": False}, 1, False),
        (gpu(None), {}, 16, False),
        (gpu(24), {"microBatchSize": 4}, 4, True),
    ],
)
def test_the_micro_batch_is_the_largest_that_fits_before_anything_is_recomputed(
    device: Device, fields: dict[str, Any], micro_batch: int, recompute: bool
) -> None:
    found = chosen(spec(**fields), device)
    assert (found.micro_batch_size, found.gradient_checkpointing) == (micro_batch, recompute)


@pytest.mark.parametrize(
    ("wanted", "device", "stage"),
    [
        pytest.param(spec("LoRA"), gpu(80, gpus=4), 0, id="each GPU holds it all"),
        pytest.param(spec("Full"), gpu(80, gpus=8), 2, id="optimizer and gradients are shared"),
        pytest.param(spec("Full"), gpu(32, gpus=8), 3, id="weights are shared"),
        pytest.param(spec("LoRA", batchSize=8, maxSequenceLength=512), gpu(16, gpus=8), 3, id="a base that is shared"),
        pytest.param(spec("QLoRA"), gpu(8, gpus=8), 3, id="4-bit weights, too"),
        pytest.param(spec("Full", optimizer="adamw8bit"), gpu(80, gpus=8), 0, id="an optimizer that is not"),
        pytest.param(spec("Full"), gpu(None, gpus=8), 0, id="a GPU that is not known"),
        pytest.param(spec("Full"), gpu(80), 0, id="nobody to share with"),
    ],
)
def test_gpus_share_no_more_than_is_needed(wanted: TuningSpec, device: Device, stage: int) -> None:
    found = chosen(wanted, device)
    assert found.sharing.zero_stage == stage
    assert ("zeroStage" in found.because) == (device.ranks > 1)


@pytest.mark.parametrize(
    ("asked", "stage", "offload"),
    [
        ({"zeroStage": 1}, 1, "none"),
        ({"zeroStage": 3, "offload": "optimizer"}, 3, "optimizer"),
        ({"offload": "optimizer"}, 2, "optimizer"),
        ({"offload": "all"}, 3, "all"),
    ],
    ids=str,
)
def test_what_is_asked_for_is_shared(asked: dict[str, Any], stage: int, offload: str) -> None:
    wanted = TuningSpec.model_validate({**spec("Full").to_wire(), "deepspeed": asked})
    found = chosen(wanted, gpu(80))
    assert (found.sharing.zero_stage, found.sharing.offload) == (stage, offload)


def test_packing_where_half_of_a_batch_would_be_padding() -> None:
    assert not chosen(spec(), data=facts(longest=500, mean=300)).packing
    found = chosen(spec(), data=facts(longest=500, mean=100))
    assert found.packing
    assert found.because["packing"] == "examples have 100 tokens on average, sequences 512"
    assert not chosen(spec(batchSize=1), data=facts(longest=500, mean=100)).packing


@pytest.mark.parametrize(
    ("wanted", "gibibytes", "advice"),
    [
        (spec("Full"), 40, "this would fit: deepspeed.offload all, with resources.memory for it"),
        (spec("Full", optimizer="adamw8bit"), 40, "this would fit: method LoRA"),
        (spec("LoRA"), 12, "this would fit: method QLoRA"),
        (spec("QLoRA", maxSequenceLength=65536), 12, "this would fit: maxSequenceLength "),
        (spec("LoRA", gradientCheckpointing=False, maxSequenceLength=4096), 24, "gradientCheckpointing true"),
        (spec("QLoRA"), 4, "this would fit: a GPU with "),
        (spec("Full"), 40, "or resources.gpusPerNode 8: such GPUs share the model (ZeRO 2)"),
        (spec("LoRA"), 12, "or a GPU with 22 GiB, as A10"),
        (
            spec("LoRA", maxSequenceLength=1_048_576, gradientCheckpointing=True),
            1,
            "no known GPU fits: take a smaller model",
        ),
    ],
    ids=[
        "full",
        "full, not to be shared",
        "lora",
        "long",
        "recomputation forbidden",
        "larger",
        "more GPUs",
        "which GPU",
        "nothing",
    ],
)
def test_what_does_not_fit_is_told_what_would(wanted: TuningSpec, gibibytes: int, advice: str) -> None:
    found = chosen(wanted, gpu(gibibytes))
    assert found.estimate.fits is False
    assert advice in what_would_fit(wanted, found, shape=LLAMA_8B, gpu_bytes=gibibytes * GIB)


def in_fp8(**fields: Any) -> TuningSpec:
    return TuningSpec.model_validate({**spec(**fields).to_wire(), "quantization": {"type": "fp8"}})


@pytest.mark.parametrize(
    ("device", "refusal"),
    [
        pytest.param(CPU, r"quantization\.type is fp8, which a CPU does not multiply", id="CPU"),
        pytest.param(
            Device(gpus=1, gpu_type="NVIDIA-A100-SXM4-80GB"), r"the GPU, A100 80GB, .*resources\.gpuType", id="A100"
        ),
    ],
)
def test_fp8_where_nothing_multiplies_it_is_refused(device: Device, refusal: str) -> None:
    with pytest.raises(ResolveError, match=refusal):
        chosen(in_fp8(), device)


@pytest.mark.parametrize("kind", ["NVIDIA-H200", "NVIDIA-L4", "nobody-knows-it", None])
def test_fp8_on_other_gpus_shares_nothing_and_needs_less(kind: str | None) -> None:
    device = Device(gpus=2, gpu_type=kind, gpu_memory_bytes=20 * GIB)

    found, dense = (chosen(wanted, device, facts(longest=4096, mean=4000)) for wanted in (in_fp8(), spec()))

    assert (found.sharing.zero_stage, dense.sharing.zero_stage) == (0, 3)
    assert found.estimate.fits


def test_what_would_fit_is_without_fp8() -> None:
    found = chosen(in_fp8(), gpu(12))

    assert "method QLoRA, without quantization.type fp8" in what_would_fit(
        in_fp8(), found, shape=LLAMA_8B, gpu_bytes=12 * GIB
    )


def test_a_length_beyond_the_model_is_refused() -> None:
    with pytest.raises(ResolveError, match=r"maxSequenceLength is 4096, but the model holds 2048 tokens"):
        chosen(spec(maxSequenceLength=4096), limit=2048)
