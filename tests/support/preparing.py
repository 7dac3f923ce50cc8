"""Run configurations for tests of the prepare and fetch stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_contract.run_config import RunConfig
from finetune_trainer.environment import Environment

UID = "11111111-2222-3333-4444-555555555555"


def run_config(
    place: str,
    *,
    model: str,
    revision: str | None = None,
    uid: str = UID,
    device: dict[str, Any] | None = None,
    **spec: Any,
) -> RunConfig:
    """Return a run of `place`/data.jsonl into `place`/out; `spec` is merged into the defaults' top level."""
    settings: dict[str, Any] = {
        "method": "LoRA",
        "model": {"uri": model, "revision": revision},
        "dataset": {"uri": f"{place}/data.jsonl"},
        "output": {"uri": f"{place}/out"},
    }
    job = {"name": "job", "namespace": "team", "uid": uid}
    return RunConfig.model_validate(
        {"job": job, "spec": {**settings, **spec}, "device": device or {}, "configHash": "a-hash"}
    )


def machine(folder: Path) -> Environment:
    """Return an environment whose folders lie below one folder."""
    return Environment(
        config=folder / "config.json",
        work=folder / "work",
        cache=folder / "cache",
        claims=folder / "claims",
        termination_log=folder / "termination-log",
    )
