"""The same job gives the same adapter, byte for byte, and config.yaml is that job with everything said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from finetune_contract import paths
from finetune_contract.outcome import TrainResult
from finetune_contract.run_config import RunConfig
from finetune_contract.spec import TuningSpec
from finetune_operator.cli.check import problems_of
from finetune_trainer.prepare import run_prepare
from finetune_trainer.train import run_train
from tests.support.datasets import chats, write_lines
from tests.support.models import tiny_llama
from tests.support.preparing import machine, run_config
from tests.support.training import THIRD_PARTY, forget_preemption

pytestmark = THIRD_PARTY

SPEC: dict[str, Any] = {
    "lora": {"rank": 4, "dropout": 0.1},
    "hyperparameters": {"epochs": 0.5, "batchSize": 8, "warmupRatio": 0.1},
    "output": {"merged": {"enabled": False}},
}


def whole(config: RunConfig, folder: Path) -> TrainResult:
    """Prepare and train, on a machine of its own."""
    torch.set_num_threads(1)
    _, digest = run_prepare(config, machine(folder))
    (folder / "work").mkdir(exist_ok=True)
    done = run_train(config.model_copy(update={"prepared_sha256": digest}), machine(folder))
    forget_preemption()
    assert done is not None
    return done[0]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("repeat")
    model = tiny_llama(folder / "model")
    write_lines(folder / "data.jsonl", chats(60))
    spec = {**SPEC, "output": {**SPEC["output"], "uri": f"file://{folder}/out"}}
    return run_config(f"file://{folder}", model=f"file://{model}", **spec)


@pytest.fixture(scope="module")
def first(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainResult]:
    return whole(config, tmp_path_factory.mktemp("first"))


def job_in(config: RunConfig) -> dict[str, Any]:
    place = Path(config.run_uri.removeprefix("file://")) / paths.REPEAT
    job: dict[str, Any] = yaml.safe_load(place.read_text())
    return job


def test_config_yaml_gives_the_same_adapter(config: RunConfig, first: TrainResult, tmp_path: Path) -> None:
    spec = {name: value for name, value in job_in(config)["spec"].items() if name != "resources"}
    again = config.model_copy(update={"spec": TuningSpec.model_validate(spec)})

    assert whole(again, tmp_path).artifacts["adapter"] == first.artifacts["adapter"]


def test_another_seed_gives_another_adapter(config: RunConfig, first: TrainResult, tmp_path: Path) -> None:
    spec = config.spec.to_wire() | {"output": {"uri": f"file://{tmp_path}/out", "merged": {"enabled": False}}}
    spec["hyperparameters"] = {**SPEC["hyperparameters"], "seed": 1}
    other = config.model_copy(update={"spec": TuningSpec.model_validate(spec)})

    assert whole(other, tmp_path).artifacts["adapter"].sha256 != first.artifacts["adapter"].sha256


@pytest.mark.usefixtures("first")
def test_config_yaml_is_a_job_that_leaves_nothing_to_choose(config: RunConfig) -> None:
    job = job_in(config)

    assert problems_of(job, in_cluster=False) == []
    assert "epochs" not in job["spec"]["hyperparameters"]
    assert {"maxSteps", "learningRate", "microBatchSize", "precision", "packing"} <= job["spec"][
        "hyperparameters"
    ].keys()
    assert job["spec"]["output"]["uri"] == f"{config.spec.output.uri}-repeated"
