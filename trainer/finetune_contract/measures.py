"""The parts of `spec.evaluation`: what models are measured by, and what bounds are set."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator

from finetune_contract.fields import Positive, SecretRef, Uri
from finetune_contract.model import Model

JsonSchema = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""An object that the API server keeps as it is."""


class Samples(Model):
    """Prompts whose answers are kept: they show a format that collapses before any loss does."""

    prompts: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...], Field(max_length=16)] = ()
    """Prompts answered while the model is trained (samples.jsonl), and by the base and the tuned model at the end (evaluation.json). A few held-out ones are asked during training when absent."""
    every_steps: Positive | None = None
    """Optimizer steps between two rounds of answers; about four rounds a run when absent."""


class EarlyStopping(Model):
    """When training has taken what the data give."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Measurements of the held-out loss in a row that may be no better than the best before the run ends. The weights of the best are what is exported, with early stopping or without."""


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
            raise ValueError(f"must be a regular expression as Python has them: {error}") from error
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
    JUDGE = "judge"


class Forgetting(Model):
    """What tuning costs in general: perplexity on text beside the task, before and after."""

    enabled: bool = True
    """Measure it; only where the base model is measured."""
    uri: Uri | None = None
    """Text of your own, at most 256 KiB: paragraphs between blank lines, or JSON Lines of {"text"}. Read with the credentials of dataset.uri. Fifty paragraphs that come with the trainer when absent."""


class Judge(Model):
    """A language model that compares the answers of base and tuned model pair by pair, in both orders."""

    endpoint: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^https?://[^@/?#]+(/[^@?#]*)?$")]
    """Base URL of an OpenAI-compatible server, as https://judge.example.com/v1; /chat/completions is asked below it. A profile must allow it (limits.allowedEndpoints) or have it among its defaults."""
    model: Annotated[str, Field(min_length=1, max_length=256)]
    """Name of the model at the endpoint."""
    rubric: Annotated[str, Field(min_length=1, max_length=8192)] | None = None
    """What makes an answer the better one. When absent: it does what is asked, is correct, and agrees with the held-out answer."""
    max_examples: Annotated[int, Field(ge=1, le=10000)] = 32
    """Held-out examples that are judged, of those that evaluation.maxExamples answers: two questions to the judge each."""
    max_tokens: Annotated[int, Field(ge=1, le=131072)] = 1024
    """Longest reply of the judge in tokens; a model that thinks first needs more."""
    timeout_seconds: Annotated[int, Field(ge=1, le=86400)] = 900
    """Time for all questions together. Whatever happens to the judge, the tuned model is kept: the verdicts that are there count."""
    secret_ref: SecretRef | None = None
    """Secret with OPENAI_API_KEY."""


class Gate(Model):
    """A bound that the tuned model must keep."""

    metric: Measure
    """What is bounded: loss or perplexity of the held-out part, one of evaluation.metrics, or forgetting: the perplexity on general text, as a ratio of tuned to base; or judge: the share of pairs that the tuned model wins, ties counting half."""
    min: Annotated[float, Field(ge=-1000000, le=1000000)] | None = None
    """Lowest value that passes."""
    max: Annotated[float, Field(ge=-1000000, le=1000000)] | None = None
    """Highest value that passes."""
    relative_to: Literal["base"] | None = None
    """base: the bounds hold for tuned minus base, not for the tuned model's own value."""
