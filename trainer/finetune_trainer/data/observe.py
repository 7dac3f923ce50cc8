"""What the first pass tells about the data, put together for warnings and status: no tokenizer is needed for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.defaults import usual_rate
from finetune_contract.prepared import DatasetCounts
from finetune_contract.resolve import epochs_of
from finetune_contract.spec import TuningSpec
from finetune_trainer.data.advice import Observed
from finetune_trainer.data.plan import Plan
from finetune_trainer.data.survey import Survey


def observe(spec: TuningSpec, seen: Survey, plan: Plan, *, train_examples: int) -> Observed:
    """Return the counts; what only tokens tell is left at nothing."""
    validation = spec.dataset.validation
    return Observed(
        examples=seen.examples,
        train_examples=train_examples,
        held_out=plan.held_out,
        fraction=None if validation.uri else validation.fraction,
        duplicates=seen.duplicates,
        near_duplicates=seen.checks.near_duplicates(seen.wholes),
        leaked=plan.leaked,
        damaged=seen.checks.damaged,
        damages=seen.checks.damages,
        labels=seen.checks.labels,
        system_prompts=len(seen.system_prompts),
        one_prompt=plan.by_whole,
        **_settings(spec, train_examples=train_examples),
    )


def under(spec: TuningSpec, observed: Observed) -> Observed:
    """Return what was observed of data with another job's settings: the warnings are about both."""
    return replace(observed, **_settings(spec, train_examples=observed.train_examples))


def _settings(spec: TuningSpec, *, train_examples: int) -> dict[str, Any]:
    return {
        "method": spec.method,
        "objective": spec.objective,
        "learning_rate": spec.hyperparameters.learning_rate or usual_rate(spec)[0],
        "epochs": epochs_of(spec, train_examples=train_examples),
    }


def counts(
    observed: Observed, *, shape: DatasetFormat, validation_examples: int, advice: tuple[str, ...]
) -> DatasetCounts:
    """Return the counts as the status has them."""
    return DatasetCounts(
        format=shape,
        examples=observed.examples,
        train_examples=observed.train_examples,
        validation_examples=validation_examples,
        duplicates=observed.duplicates,
        near_duplicates=observed.near_duplicates,
        leaked=observed.leaked,
        damaged=observed.damaged,
        warnings=advice,
    )
