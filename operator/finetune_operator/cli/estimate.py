"""`finetune estimate`: the memory that a job or a model takes, from its config.json alone, method beside method."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_contract import paths
from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.fitting import ResolveError
from finetune_contract.gpus import known_gpu
from finetune_contract.resolve import Choice, DataFacts, choose
from finetune_contract.run_config import Device, Use
from finetune_contract.shape import ModelShape, UnknownShapeError
from finetune_contract.spec import Method, TuningSpec
from finetune_operator.api import constants as c
from finetune_operator.api.job import FineTuneJobSpec, Resources
from finetune_operator.api.quantities import quantity
from finetune_operator.cli.check import is_ours, problems_of
from finetune_operator.cli.documents import ReadError, read_documents
from finetune_operator.cli.formats import add_format, is_json, show_json
from finetune_operator.cli.storage import StorageError, local_uri, read
from finetune_operator.cli.validate import INVALID

DEFAULT_LENGTH = 2048
"""Tokens a sequence where neither the job nor the user says: the data would decide."""
_GIB = 1 << 30
_QUANTITY = re.compile(r"^[0-9]+(\.[0-9]+)?(k|Ki|M|Mi|G|Gi|T|Ti)?$")
_EPILOG = """\
examples:
  finetune estimate job.yaml
  finetune estimate job.yaml --gpu-memory 24Gi
  finetune estimate --model hf://HuggingFaceTB/SmolLM2-1.7B --gpu-memory 24Gi
  finetune estimate --model ./model --method QLoRA --sequence-length 4096 --micro-batch 2

Only config.json is read: from a folder or URI (file://, s3://, hf://), with the credentials of your environment.
Without a method all three stand side by side. Micro-batch and recomputation are what the trainer would choose.
exit code: 0; 1 if nothing of what was asked fits the GPU; 2 if the manifest or model cannot be read
"""


class _InputError(Exception):
    """What was given cannot be estimated; the message says why."""


@dataclass(frozen=True, slots=True)
class _Question:
    """What is to be estimated."""

    shape: ModelShape
    specs: tuple[TuningSpec, ...]
    device: Device
    length: int

    def answers(self) -> list[Choice]:
        facts = DataFacts(format=DatasetFormat.MESSAGES, longest=self.length, most=self.length, mean=self.length)
        return [
            choose(spec, device=self.device, facts=facts, shape=self.shape, limit=self.shape.positions)
            for spec in self.specs
        ]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "estimate",
        help="estimate the GPU memory of a job or a model",
        description="Estimate the memory of one GPU at the peak of a training step.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", metavar="FILE", help="manifest of a FineTuneJob, or - for standard input")
    what.add_argument("--model", metavar="URI", help="a model's folder or its config.json: path or URI")
    parser.add_argument("--revision", default="main", help="of a model on the hub (default: main)")
    parser.add_argument("--method", choices=[str(method) for method in Method], help="one method alone")
    parser.add_argument("--gpu-memory", type=_quantity, metavar="SIZE", help="memory of one GPU, as 80Gi")
    parser.add_argument("--sequence-length", type=int, metavar="TOKENS", help=f"default: {DEFAULT_LENGTH}")
    parser.add_argument("--micro-batch", type=int, metavar="N", help="examples a forward pass (default: chosen)")
    parser.add_argument("--rank", type=int, help="of the adapters (default: 16)")
    add_format(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Estimate and print the table."""
    try:
        question = _of_job(arguments) if arguments.file else _of_model(arguments)
        found = question.answers()
    except (_InputError, StorageError, ResolveError, UnknownShapeError) as error:
        print(f"finetune estimate: {error}", file=sys.stderr)
        return INVALID
    if is_json(arguments):
        show_json(_wire(question, found))
    else:
        print(*_table(question, found), sep="\n")
    return int(all(choice.estimate.fits is False for choice in found))


def _quantity(text: str) -> int:
    if not _QUANTITY.match(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory: write 80Gi")
    return int(quantity(text))


def _of_job(arguments: argparse.Namespace) -> _Question:
    job = _read_job(arguments.file)
    spec = FineTuneJobSpec.model_validate(job["spec"])
    memory = arguments.gpu_memory
    if memory is None:
        memory = _memory_of(spec.resources)
    tuning = TuningSpec(**{name: getattr(spec, name) for name in TuningSpec.model_fields})
    method = Method(arguments.method) if arguments.method else spec.method
    revision = spec.model.revision or arguments.revision
    return _question(
        tuning,
        arguments,
        methods=[method],
        uri=spec.model.uri,
        revision=revision,
        device=_device(spec.resources.gpus, memory, nodes=spec.resources.nodes, kind=spec.resources.gpu_type),
    )


def _memory_of(asked: Resources) -> int | None:
    """Return the memory of one GPU as far as the job itself says it, or its product's name does."""
    if asked.gpu_memory is not None:
        return int(quantity(asked.gpu_memory))
    known = known_gpu(asked.gpu_type) if asked.gpu_type else None
    return known.memory_bytes if known else None


def _read_job(name: str) -> dict[str, Any]:
    try:
        ours = [document.value for document in read_documents(name) if is_ours(document.value)]
    except ReadError as error:
        raise _InputError(f"{name}: {error}") from error
    problems = [str(problem) for value in ours for problem in problems_of(value, in_cluster=False)]
    if problems:
        raise _InputError(f"{name} is not valid:\n" + "\n".join(problems))
    jobs: list[dict[str, Any]] = [value for value in ours if value["kind"] == c.JOB_KIND]
    if len(jobs) != 1:
        raise _InputError(f"{name} has {len(jobs)} FineTuneJobs: one is needed")
    return jobs[0]


def _of_model(arguments: argparse.Namespace) -> _Question:
    nowhere = {"uri": "s3://bucket/any"}
    spec = TuningSpec.model_validate({"method": "LoRA", "model": nowhere, "dataset": nowhere, "output": nowhere})
    methods = [Method(arguments.method)] if arguments.method else list(Method)
    device = _device(1, arguments.gpu_memory)
    return _question(spec, arguments, methods=methods, uri=arguments.model, revision=arguments.revision, device=device)


def _device(gpus: int, memory: int | None, *, nodes: int = 1, kind: str | None = None) -> Device:
    return Device(gpus=gpus, nodes=nodes, gpu_memory_bytes=memory if gpus else None, gpu_type=kind if gpus else None)


def _question(
    spec: TuningSpec,
    arguments: argparse.Namespace,
    *,
    methods: Sequence[Method],
    uri: str,
    revision: str,
    device: Device,
) -> _Question:
    shape = ModelShape.from_config_json(_config_json(uri, revision))
    wanted = spec.hyperparameters
    length = arguments.sequence_length or wanted.max_sequence_length or DEFAULT_LENGTH
    length = min(length, shape.positions or length)
    changed = wanted.model_copy(update={
        "max_sequence_length": length,
        "micro_batch_size": arguments.micro_batch or wanted.micro_batch_size,
    })  # fmt: skip
    return _Question(
        shape=shape,
        specs=tuple(
            _with(spec.model_copy(update={"hyperparameters": changed}), one, arguments.rank) for one in methods
        ),
        device=device,
        length=length,
    )


def _with(spec: TuningSpec, method: Method, rank: int | None) -> TuningSpec:
    lora = {**(spec.lora.to_wire() if spec.lora else {}), **({"rank": rank} if rank else {})}
    wire = {**spec.to_wire(), "method": method, "lora": None if method is Method.FULL or not lora else lora}
    if method is Method.FULL or spec.in_fp8 != (method is Method.LORA):
        wire.pop("quantization", None)
    if method is not Method.FULL and spec.deepspeed and spec.deepspeed.zero_stage in (1, 2):
        wire.pop("deepspeed")  # adapters are shared out by stage 3 or not at all
    return TuningSpec.model_validate(wire)


def _config_json(uri: str, revision: str) -> dict[str, Any]:
    place = local_uri(uri)
    if not place.endswith(".json"):
        place = paths.join(place, "config.json")
    try:
        value = json.loads(read(place, use=Use.MODEL, revision=revision))
    except ValueError as error:
        raise _InputError(f"{place}: not JSON") from error
    if not isinstance(value, dict):
        raise _InputError(f"{place}: not a model's configuration")
    return value


def _wire(question: _Question, found: list[Choice]) -> dict[str, Any]:
    choices = [
        {
            "method": str(spec.method),
            "microBatchSize": choice.micro_batch_size,
            "gradientCheckpointing": choice.gradient_checkpointing,
            "estimate": choice.estimate.to_wire(),
        }
        for spec, choice in zip(question.specs, found, strict=True)
    ]
    return {
        "family": question.shape.family,
        "parameters": question.shape.parameters(),
        "sequenceLength": question.length,
        "gpuMemoryBytes": question.device.gpu_memory_bytes,
        "choices": choices,
    }


def _table(question: _Question, found: list[Choice]) -> Iterator[str]:
    shape, memory = question.shape, question.device.gpu_memory_bytes
    gpu = f", a GPU of {_gib(memory)} GiB" if memory else ""
    yield f"{shape.family}, {_millions(shape.parameters())} parameters; sequences of {question.length} tokens{gpu}"
    yield ""
    yield _row("GiB", [str(spec.method) for spec in question.specs])
    for part in found[0].estimate.breakdown:
        yield _row(part, [_gib(choice.estimate.breakdown[part]) for choice in found])
    yield _row("total", [_gib(choice.estimate.per_gpu_bytes) for choice in found])
    yield ""
    yield _row("micro-batch", [str(choice.micro_batch_size) for choice in found])
    yield _row("recomputation", ["yes" if choice.gradient_checkpointing else "no" for choice in found])
    if memory:
        yield _row("fits", ["yes" if choice.estimate.fits else "NO" for choice in found])


def _row(title: str, cells: list[str]) -> str:
    return f"{title:<16}" + "".join(f"{cell:>10}" for cell in cells)


def _gib(count: int) -> str:
    return f"{count / _GIB:.2f}"


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.0f} million"  # noqa: PLR2004
