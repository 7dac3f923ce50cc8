"""A case by the trainer: its train stage from the loaded model on, with random weights in place of a model's files.

What prepare would have settled for the data and this GPU is settled by the same function; loading onto the GPU, dry
run, steps, checkpoints, resume and saving are the stage's own functions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.ranks.cases import INSTRUCTIONS, LEARNED, RESUME, SPEED, Case, Scale
from benchmarks.ranks.meter import SpeedMeter, gigabytes
from benchmarks.ranks.setting import examples_a_step, lengths_of, random_model, rows, shape_of, write_model_folder
from finetune_contract import paths
from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.prepared import DatasetSummary, Prepared
from finetune_contract.resolve import Choice, DataFacts, choose, resolve
from finetune_contract.run_config import Device, RunConfig, Use
from finetune_contract.shape import ModelShape

_MODEL = "file:///random"
"""No such folder is read; one name for all, since a run goes on with the same model alone."""


def ready(case: Case, scale: Scale, *, folder: Path) -> tuple[Any, Any, Choice]:
    """Return the run, its loop after the dry run, and what was chosen; `folder` is this process's own."""
    from finetune_trainer import train
    from finetune_trainer.model import build as model
    from finetune_trainer.parallel.distributed import world

    model_folder = folder / "model"
    if not world().local_rank:
        model_folder.mkdir(parents=True, exist_ok=True)
        write_model_folder(model_folder, shape_of(case, scale))
    world().barrier()
    vars(model)["load_base"] = _random_base
    run, choice = make_run(case, scale, folder=folder, model_folder=model_folder)
    loop, _ = train._get_ready(run)
    return run, loop, choice


def measure_speed(case: Case, scale: Scale, *, folder: Path) -> None:
    """Train some steps, print the figures of them, and end the process."""
    from finetune_trainer import train
    from finetune_trainer.reporting.figures import efficiency
    from finetune_trainer.reporting.progress import Poster, Progress

    run, loop, choice = ready(case, scale, folder=folder)
    of_peak = efficiency(run.config, run.prepared, run.fetched.path)
    expected = choice.estimate.per_gpu_bytes - choice.estimate.breakdown["runtime"]

    def facts(tokens_per_second: float) -> dict[str, Any]:
        return {
            "mfu": round(of_peak.mfu(tokens_per_second), 4) if of_peak else None,
            "estimate_gb": gigabytes(expected),
            "micro_batch": loop.micro_batch,
            "recomputes": loop.recomputes,
            "fast": loop.fast.summary if loop.fast else None,
            "compiled": bool(loop.fast and loop.fast.compiled),
        }

    loop.add_callback(SpeedMeter(warm_up=scale.warm_up, facts=facts))
    train._train(run, loop, Progress(Poster.from_env()))


def make_run(case: Case, scale: Scale, *, folder: Path, model_folder: Path) -> tuple[Any, Choice]:
    """Return what `train` gathers before it loads a model."""
    from transformers import AutoTokenizer

    from finetune_trainer.data.dataset import Data
    from finetune_trainer.fetch import FetchedModel
    from finetune_trainer.reporting.figures import GpuClock, gpus
    from finetune_trainer.run import Run
    from finetune_trainer.storage import open_store

    steps = scale.steps if case.kind == SPEED else LEARNED
    train = rows(case, scale, steps=steps)
    config = config_of(case, scale, steps=steps, folder=folder)
    shape = ModelShape.from_config_json(json.loads((model_folder / "config.json").read_text()))
    lengths = lengths_of(case.data, scale, number=len(train))
    facts = DataFacts(DatasetFormat.TEXT, scale.longest, scale.longest, sum(lengths) / len(lengths))
    choice = choose(config.spec, device=config.device, facts=facts, shape=shape)
    prepared = Prepared(
        job_uid=config.job.uid, config_hash="", dataset=summary(lengths, case.data), estimate=choice.estimate,
        resolved=resolve(config.spec, choice, train_examples=len(train)), pad_token_id=0, shards=(), held_out="",
        first_example="",
    )  # fmt: skip
    data = Data(train=train, validation=[train[0]], questions=[])
    tokenizer, store = AutoTokenizer.from_pretrained(model_folder), open_store(config.spec.output.uri, Use.OUTPUT)
    fetched = FetchedModel(model_folder, "random")
    return Run(config, prepared, store, folder / "train", data, fetched, tokenizer, GpuClock(gpus=gpus())), choice


def summary(lengths: list[int], data: str) -> DatasetSummary:
    """Return what prepare says of the data."""
    tokens = sum(lengths)
    return DatasetSummary(
        format=DatasetFormat.TEXT, examples=len(lengths), train_examples=len(lengths), validation_examples=1,
        train_tokens=tokens, loss_tokens=tokens // 2 if data == INSTRUCTIONS else tokens, longest=max(lengths),
        truncated=0, dropped=0, duplicates=0,
    )  # fmt: skip


def config_of(case: Case, scale: Scale, *, steps: int, folder: Path) -> RunConfig:
    """Return the run's configuration: the user says little more than the sizes."""
    from tests.support.prepared import make_config

    never = 100 * steps
    on_gpu, memory = _gpu_memory()
    every = never if case.kind == SPEED else LEARNED // 2
    spec: dict[str, Any] = {
        "hyperparameters": {
            "maxSteps": steps, "batchSize": examples_a_step(case, scale),
            "maxSequenceLength": scale.longest, "precision": "bfloat16" if on_gpu else "float32",
            "loss": "all", "learningRate": 1e-5,
        },
        "checkpoint": {"everySteps": every, "keep": 3},
        "evaluation": {"everySteps": never, "compareWithBase": False, "samples": {"everySteps": never}},
    }  # fmt: skip
    if case.method == "Full":
        spec["deepspeed"] = {"zeroStage": case.stage}
    if case.kind == RESUME:
        spec["checkpoint"]["resumeFrom"] = f"file://{checkpoint_of(folder)}"
    device = Device(gpus=case.gpus, gpu_memory_bytes=memory) if on_gpu else Device(processes=case.gpus)
    config = make_config(output_uri=f"file://{folder / 'out'}", model_uri=_MODEL, method=case.method, **spec)
    return config.model_copy(update={"device": device})


def checkpoint_of(folder: Path, step: int = LEARNED // 2) -> Path:
    """Return where the run whose checkpoint another one goes on from has left it: in a folder beside the other's."""
    return folder.with_name("stored") / "out" / "run-1" / paths.checkpoint_dir(1, step)


def _gpu_memory() -> tuple[bool, int | None]:
    import torch

    if not torch.cuda.is_available():
        return False, None
    return True, torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def _random_base(
    folder: Path, *, dtype: Any, quantization: Any = None, on: Any = None, partitioned: bool = False
) -> Any:
    """Stand in for `model.load_base`."""
    import torch

    from finetune_trainer.model.build import device

    place = None if partitioned and not quantization else torch.device("cpu") if partitioned else on or device()
    return random_model(
        folder, dtype=dtype, on=place, quantised=bool(quantization), storage=dtype if partitioned else torch.uint8
    )
