"""A DeepSpeed configuration of the user's own: what it may say beside the job, and what it is told where it may not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.nested import laid_over
from finetune_contract.spec import TuningSpec
from finetune_trainer.errors import TrainerError
from finetune_trainer.parallel import zero
from finetune_trainer.parallel.deepspeed_config import own_config
from tests.support.prepared import make_config, make_resolved

OTHER_STAGE = {"zero_optimization": {"stage": 2}}
ON_DISK = {"zero_optimization": {"offload_param": {"device": "nvme"}}}
RESOLVED = make_resolved(zero_stage=3, offload="optimizer", batch_size=8, micro_batch_size=2)


def spec(**deepspeed: Any) -> TuningSpec:
    asked = {"zeroStage": 3, "offload": "optimizer", "configMapRef": {"name": "team", "key": "ds.json"}, **deepspeed}
    return make_config(output_uri="file:///o", model_uri="file:///m", method="Full", deepspeed=asked).spec


def read(content: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    text = content if isinstance(content, str) else json.dumps(content)
    monkeypatch.setenv(paths.ENV_DEEPSPEED_CONFIG, text)
    return own_config(spec(), RESOLVED)


def test_what_the_job_has_no_field_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = {
        "zero_optimization": {"reduce_bucket_size": 1000, "offload_optimizer": {"ratio": 0.5}},
        "communication": {},
    }
    assert read(tuned, monkeypatch) == tuned


def test_what_the_job_says_may_be_repeated_or_called_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    repeated = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 1.0,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}},
    }
    assert read(repeated, monkeypatch) == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(OTHER_STAGE, "zero_optimization.stage is 2, but deepspeed.zeroStage", id="stage"),
        pytest.param(OTHER_STAGE, 'write "auto", here 3; repeat it or leave it out', id="advice"),
        pytest.param({"train_batch_size": 16}, "hyperparameters.batchSize decides it", id="batch size"),
        pytest.param({"train_micro_batch_size_per_gpu": 2}, 'write "auto", leave it out', id="micro-batch"),
        pytest.param({"bf16": {"enabled": True}}, "is true, but hyperparameters.precision", id="precision"),
        pytest.param({"gradient_clipping": 0.5}, "hyperparameters.maxGradNorm", id="clipping"),
        pytest.param(ON_DISK, 'is "nvme", but deepspeed.offload', id="offload"),
        pytest.param({"optimizer": {"type": "Adam"}}, "optimizer is for hyperparameters.optimizer", id="optimizer"),
        pytest.param({"scheduler": {}}, "scheduler is for hyperparameters.scheduler", id="schedule"),
        pytest.param("{'stage': 3}", "not JSON: ", id="no JSON"),
        pytest.param("[]", "not a JSON object", id="no object"),
    ],
)
def test_what_contradicts_the_job_is_refused_by_name(content: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainerError) as caught:
        read(content, monkeypatch)
    assert caught.value.code is ExitCode.CONFIG_INVALID
    assert caught.value.message.startswith("deepspeed.configMapRef: ")
    assert said in caught.value.message


def test_without_a_cluster_a_file_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(paths.ENV_DEEPSPEED_CONFIG, raising=False)
    with pytest.raises(TrainerError, match="--deepspeed-config FILE"):
        own_config(spec(), RESOLVED)
    assert own_config(spec(configMapRef=None), RESOLVED) == {}


def test_the_engine_is_given_the_trainers_configuration_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"zero_optimization": {"stage": "auto", "reduce_bucket_size": 512}, "wall_clock_breakdown": True}
    monkeypatch.setenv(paths.ENV_DEEPSPEED_CONFIG, json.dumps(own))
    monkeypatch.setattr(zero, "_connect", lambda: None)
    config = make_config(
        output_uri="file:///o", model_uri="file:///m", method="Full", deepspeed=spec().to_wire()["deepspeed"]
    )

    settings = zero.sharing_settings(config, RESOLVED, micro_batch=2)

    assert settings is not None
    sharing = settings["zero_optimization"]
    assert (sharing["stage"], sharing["reduce_bucket_size"], sharing["contiguous_gradients"]) == (3, 512, True)
    assert settings["wall_clock_breakdown"] is True
    assert settings["train_micro_batch_size_per_gpu"] == 2


def test_sections_are_laid_over_key_by_key() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert laid_over(base, {"a": {"b": 9}, "e": {"f": 1}}) == {"a": {"b": 9, "c": 2}, "d": 3, "e": {"f": 1}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
