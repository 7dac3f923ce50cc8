"""What prepare needs to know of the base model: its tokenizer, its shape and its limits, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import RunConfig
from finetune_contract.shape import ModelShape, UnknownShapeError
from finetune_contract.spec import Lora
from finetune_trainer.environment import Environment
from finetune_trainer.errors import TrainerError
from finetune_trainer.fetch import fetch_model
from finetune_trainer.model.adapters_check import check_apart
from finetune_trainer.model.folder import read_config, stop_ids

_NO_LIMIT = 10_000_000
"""Tokenizers without a limit of their own carry an absurd number."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The model as far as it can be known from configuration and tokenizer."""

    revision: str
    tokenizer: Any
    shape: ModelShape
    limit: int | None
    """Longest sequence in tokens."""
    stops: set[int]
    """Tokens at which generation stops by itself."""


def read_base_model(config: RunConfig, env: Environment) -> BaseModel:
    """Fetch configuration and tokenizer, and read them. Raises MODEL_INVALID and what fetching raises."""
    from finetune_trainer.model.tokenizer import load_tokenizer

    fetched = fetch_model(config, env, weights=False)
    content = read_config(fetched.path)
    try:
        shape = ModelShape.from_config_json(content)
    except UnknownShapeError as error:
        raise TrainerError(ExitCode.MODEL_INVALID, f"The model cannot be used: {error}.") from error
    check_apart(fetched.path, config.spec.lora or Lora(), config.spec.method)
    tokenizer = load_tokenizer(fetched.path, config.spec.model.new_tokens)
    limits = [shape.positions, tokenizer.model_max_length]
    return BaseModel(
        revision=fetched.revision,
        tokenizer=tokenizer,
        shape=shape,
        limit=min((int(one) for one in limits if one and one < _NO_LIMIT), default=None),
        stops=stop_ids(fetched.path, content),
    )
