"""What the data became, as `data.json` beside the shards: everything that the rest of a job's settings leave as it is.

A later run of the job whose data, tokenizer and reading are the same takes the shards over: nothing is made again.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

from finetune_contract.model import Model
from finetune_contract.resolve import DataFacts
from finetune_contract.run_config import RunConfig
from finetune_trainer.data.advice import Observed
from finetune_trainer.data.shards import Cut, LocalShard

NAME = "data.json"
_MAKERS = ("finetune-operator", "transformers", "tokenizers")
"""Packages that decide what a text's tokens are, and which are trained on."""


class DataRecord(Model):
    """The data after both passes and the cut."""

    key: str
    """What they were made of and how, from `data_key`."""
    facts: DataFacts
    max_sequence_length: int
    """Tokens after which examples were cut."""
    observed: Observed
    """With the settings of the run that made it; see `observe.under`."""
    train: Cut
    validation: Cut
    shards: tuple[LocalShard, ...]
    first_example: str
    """Formatted, its trained tokens marked."""
    token_histogram: dict[str, int]
    """Examples by length bucket."""


def data_key(config: RunConfig, *, data_sha256: str, model_revision: str) -> str:
    """Return what two runs must have in common for the data to become the same."""
    spec = config.spec
    made_of: dict[str, Any] = {
        "dataset": spec.dataset.model_dump(mode="json"),
        "data": data_sha256,
        "tokenizer": [spec.model.uri, model_revision, spec.model.model_dump(mode="json")["new_tokens"]],
        "objective": spec.objective,
        "loss": spec.hyperparameters.loss,
        "held out for answers": spec.evaluation.max_examples,
        "packages": [version(name) for name in _MAKERS],
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
