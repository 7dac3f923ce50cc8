"""A DeepSpeed configuration of the user's own (`deepspeed.configMapRef`), laid over the trainer's.

It is for what the job has no field for: buckets, prefetching, communication. What the job says it may repeat, leave out
or call "auto", as Hugging Face's configurations do, but not contradict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from finetune_contract.deepspeed_spec import Offload
from finetune_contract.exit_codes import ExitCode
from finetune_contract.nested import leaves
from finetune_contract.prepared import Resolved
from finetune_contract.spec import Precision, TuningSpec
from finetune_trainer.environment import deepspeed_config
from finetune_trainer.errors import TrainerError

_AUTO = "auto"
_NOT_HERE = {"optimizer": "hyperparameters.optimizer", "scheduler": "hyperparameters.scheduler"}
"""Sections that would bring another optimizer or schedule along."""
_FIELDS = {
    "train_batch_size": "hyperparameters.batchSize",
    "train_micro_batch_size_per_gpu": "hyperparameters.microBatchSize",
    "gradient_accumulation_steps": "hyperparameters.batchSize with microBatchSize",
    "gradient_clipping": "hyperparameters.maxGradNorm",
    "bf16.enabled": "hyperparameters.precision",
    "fp16.enabled": "hyperparameters.precision",
    "zero_optimization.stage": "deepspeed.zeroStage",
    "zero_optimization.offload_optimizer.device": "deepspeed.offload",
    "zero_optimization.offload_param.device": "deepspeed.offload",
}
"""DeepSpeed's keys that the job has fields for."""


def own_config(spec: TuningSpec, resolved: Resolved) -> dict[str, Any]:
    """Return the user's configuration without what the job says already; empty if there is none.

    Raises CONFIG_INVALID where it is no JSON object or contradicts the job, naming the key and the job's field.
    """
    if spec.deepspeed is None or spec.deepspeed.config_map_ref is None:
        return {}
    found = _read(deepspeed_config())
    for section, field in _NOT_HERE.items():
        if section in found:
            raise _invalid(f"{section} is for {field} to say: remove it")
    return _without_what_the_job_says(found, {key: _told(key, spec, resolved) for key in _FIELDS})


def _told(key: str, spec: TuningSpec, resolved: Resolved) -> Any:
    """Return what the job says of a key; _AUTO where that is decided on the GPU."""
    away = {True: "cpu", False: "none"}
    return {
        "train_batch_size": resolved.batch_size,
        "gradient_clipping": spec.hyperparameters.max_grad_norm,
        "bf16.enabled": resolved.precision is Precision.BFLOAT16,
        "fp16.enabled": False,
        "zero_optimization.stage": resolved.zero_stage,
        "zero_optimization.offload_optimizer.device": away[resolved.offload is not Offload.NONE],
        "zero_optimization.offload_param.device": away[resolved.offload is Offload.ALL],
    }.get(key, _AUTO)


def _read(text: str | None) -> dict[str, Any]:
    if text is None:
        raise _invalid("no configuration was given: with finetune run, --deepspeed-config FILE names it")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise _invalid(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise _invalid("not a JSON object")
    return found


def _without_what_the_job_says(found: dict[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {}
    for path, value in leaves(found):
        key = ".".join(path)
        if key not in told:
            _put(own, path, value)
        elif value not in (_AUTO, told[key]):
            job = "leave it out" if told[key] == _AUTO else f"here {json.dumps(told[key])}; repeat it or leave it out"
            raise _invalid(f'{key} is {json.dumps(value)}, but {_FIELDS[key]} decides it: write "auto", {job}')
    return own


def _put(section: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        section = section.setdefault(key, {})
    section[path[-1]] = value


def _invalid(what: str) -> TrainerError:
    return TrainerError(ExitCode.CONFIG_INVALID, f"deepspeed.configMapRef: {what}.")
