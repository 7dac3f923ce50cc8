"""What the base model makes of the pairs: taken once a run, kept in storage for later attempts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from finetune_contract import paths
from finetune_contract.model import Model
from finetune_contract.prepared import Prepared
from finetune_contract.run_config import RunConfig
from finetune_trainer.data.dataset import Data
from finetune_trainer.errors import NotFoundError
from finetune_trainer.logs import log
from finetune_trainer.parallel.distributed import world
from finetune_trainer.preference.passes import REFERENCE, reference_of
from finetune_trainer.storage import Store

FILE = "reference.json"

Pairs = tuple[tuple[float, ...], ...]
"""Log-probabilities of the better and of the worse answer, pair by pair; with KTO of the mismatched one, too."""


class Reference(Model):
    """reference.json."""

    config_hash: str
    prepared_sha256: str | None = None
    train: Pairs
    validation: Pairs


def with_reference(model: Any, data: Data, *, prepared: Prepared, config: RunConfig, store: Store) -> Data:
    """Return the data with the base model's log-probabilities. The model must still be the base."""
    uri = paths.join(config.run_uri, FILE)
    known = world().from_first(lambda: _known(uri, config, store))
    found = known or _taken(model, data, prepared=prepared, config=config)
    if world().first and not known:
        store.write(uri, found.to_json().encode())
    pairs = zip(data.validation, found.validation, strict=True)
    return replace(
        data,
        train=data.train.add_column(REFERENCE, [list(pair) for pair in found.train]),
        validation=[{**row, REFERENCE: list(pair)} for row, pair in pairs],
    )


def _known(uri: str, config: RunConfig, store: Store) -> Reference | None:
    try:
        found = Reference.model_validate_json(store.read(uri))
    except (NotFoundError, ValidationError):
        return None
    same = (found.config_hash, found.prepared_sha256) == (config.config_hash, config.prepared_sha256)
    return found if same else None


def _taken(model: Any, data: Data, *, prepared: Prepared, config: RunConfig) -> Reference:
    log.info("the base model's view of %d pairs", len(data.train) + len(data.validation))
    train, validation = (
        tuple(tuple(answers) for answers in reference_of(model, rows, prepared=prepared))
        for rows in (data.train, data.validation)
    )
    return Reference(
        config_hash=config.config_hash, prepared_sha256=config.prepared_sha256, train=train, validation=validation
    )
