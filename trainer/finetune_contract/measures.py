"""What `spec.evaluation` measures models by, and what bounds it sets."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator

from finetune_contract.fields import Uri
from finetune_contract.model import Model

JsonSchema = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""An object that the API server keeps as it is."""


class MetricName(StrEnum):
    """A score of generated answers, each between 0 and 1."""

    EXACT_MATCH = "exactMatch"
    REGEX = "regex"
    JSON_VALID = "jsonValid"
    JSON_SCHEMA = "jsonSchema"
    ROUGE = "rouge"


class RegexMetric(Model):
    """What the metric regex looks for."""

    pattern: Annotated[str, Field(min_length=1, max_length=1024)]
    """Python regular expression that an answer must contain; ^ and $ stand for its beginning and end."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"be a regular expression as Python has them: {error}") from error
        return pattern


class Measure(StrEnum):
    """What base and tuned model are compared by."""

    LOSS = "loss"
    PERPLEXITY = "perplexity"
    EXACT_MATCH = "exactMatch"
    REGEX = "regex"
    JSON_VALID = "jsonValid"
    JSON_SCHEMA = "jsonSchema"
    ROUGE = "rouge"
    FORGETTING = "forgetting"


class Forgetting(Model):
    """What tuning costs in general: perplexity on text beside the task, before and after."""

    enabled: bool = True
    """Measure it; only where the base model is measured."""
    uri: Uri | None = None
    """Text of your own, at most 256 KiB: paragraphs between blank lines, or JSON Lines of {"text"}. Read with the credentials of dataset.uri. Fifty paragraphs that come with the trainer when absent."""


class Gate(Model):
    """A bound that the tuned model must keep."""

    metric: Measure
    """What is bounded: loss or perplexity of the held-out part, one of evaluation.metrics, or forgetting: the perplexity on general text, as a ratio of tuned to base."""
    min: Annotated[float, Field(ge=-1000000, le=1000000)] | None = None
    """Lowest value that passes."""
    max: Annotated[float, Field(ge=-1000000, le=1000000)] | None = None
    """Highest value that passes."""
    relative_to: Literal["base"] | None = None
    """base: the bounds hold for tuned minus base, not for the tuned model's own value."""
