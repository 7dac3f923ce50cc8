"""What tuning has cost in general: the perplexity on text that has nothing to do with the task, before and after.

general.txt comes with the trainer: fifty paragraphs of prose, dialogue, instructions, code and four languages, written
for this project and under its licence (Apache-2.0), so that no model has met them in its training data before them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from finetune_contract.exit_codes import ExitCode
from finetune_contract.measures import Forgetting
from finetune_contract.run_config import RunConfig, Use
from finetune_trainer.data.dataset import Row
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.evaluation.bootstrap import Interval
from finetune_trainer.storage import open_store

MAX_BYTES = 256 << 10
MAX_TOKENS = 512
"""A longer paragraph is cut."""
_FIELD = "evaluation.forgetting.uri"


def is_measured(config: RunConfig) -> bool:
    """Whether the spec lets it be measured: by default, where the base model is measured at all."""
    settings = config.spec.evaluation
    return settings.compare_with_base and settings.forgetting.enabled


def general_rows(config: RunConfig, tokenizer: Any) -> list[Row]:
    """Return the paragraphs as rows whose tokens all count; none if it is not measured. Raises as `paragraphs` does."""
    if not is_measured(config):
        return []
    encoded = (tokenizer(text)["input_ids"][:MAX_TOKENS] for text in paragraphs(config.spec.evaluation.forgetting))
    return [{"input_ids": ids, "labels": ids} for ids in encoded if len(ids) > 1]


def paragraphs(settings: Forgetting) -> list[str]:
    """Return the user's text, or ours. Raises DATASET_NOT_FOUND, CONFIG_INVALID, naming the field."""
    if settings.uri is None:
        source = files("finetune_trainer.evaluation").joinpath("general.txt")
        return list(_split(source.read_text(encoding="utf-8")))
    found = list(_users(settings.uri))
    if not found:
        raise _invalid(f"{settings.uri} has no text in it")
    return found


def ratio(change: Interval) -> Interval:
    """Return the change of the mean loss as a ratio of perplexities: tuned over base."""
    return Interval(*(math.exp(min(value, 700.0)) for value in (change.value, change.low, change.high)))


def _users(uri: str) -> Iterator[str]:
    try:
        content = open_store(uri, Use.DATASET).read(uri)
    except NotFoundError as error:
        raise TrainerError(ExitCode.DATASET_NOT_FOUND, f"{_FIELD}: nothing lies at {uri}: correct it.") from error
    if len(content) > MAX_BYTES:
        raise _invalid(f"{uri} has {len(content)} bytes, at most {MAX_BYTES} are read: take a sample")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _invalid(f"{uri} is not UTF-8 text") from error
    return _records(text, uri) if uri.endswith((".jsonl", ".json")) else _split(text)


def _split(text: str) -> Iterator[str]:
    """Yield the paragraphs: blank lines are between them."""
    return (stripped for part in text.replace("\r\n", "\n").split("\n\n") if (stripped := part.strip()))


def _records(text: str, uri: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield str(json.loads(line)["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise _invalid(f'{uri} line {number} is not {{"text": "..."}}') from error


def _invalid(why: str) -> TrainerError:
    return TrainerError(ExitCode.CONFIG_INVALID, f"{_FIELD}: {why}.")
