"""The check stage: what prepare says about the data that needs no model, for `finetune validate --data`.

Read, checked, split and counted as prepare does it; nothing is tokenised and nothing stored. It imports no torch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from finetune_contract.prepared import DatasetCounts
from finetune_contract.run_config import RunConfig
from finetune_trainer.data.advice import warnings
from finetune_trainer.data.observe import counts, observe
from finetune_trainer.data.parts import data_parts
from finetune_trainer.data.plan import choose_plan
from finetune_trainer.data.survey import survey
from finetune_trainer.environment import Environment


def run_check(config: RunConfig, env: Environment) -> DatasetCounts:
    """Return what the data is. Raises what prepare raises for bad data."""
    dataset = config.spec.dataset
    env.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=env.work, prefix="check-") as scratch:
        parts = data_parts(dataset, Path(scratch))
        seen = survey(parts)
    plan = choose_plan(seen, parts, fraction=dataset.validation.fraction, max_samples=dataset.max_samples)
    observed = observe(config.spec, seen, plan, train_examples=plan.train_examples)
    return counts(observed, shape=seen.format, validation_examples=plan.held_out, advice=warnings(observed))
