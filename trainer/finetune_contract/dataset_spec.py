"""Where the examples come from and how they are read: `spec.dataset`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_contract.fields import Positive, Revision, SecretRef, Uri
from finetune_contract.model import Model


class DatasetFormat(StrEnum):
    """The shape of one example."""

    MESSAGES = "messages"
    SHARE_GPT = "shareGPT"
    PROMPT_COMPLETION = "promptCompletion"
    INSTRUCTION = "instruction"
    TEXT = "text"
    PREFERENCE = "preference"


class Validation(Model):
    """The held-out part, split off before anything else and never trained on."""

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the examples that is held out, chosen by a hash of the prompt: equal prompts stay together. Not together with uri."""
    uri: Uri | None = None
    """A validation set of its own, in the form of the data: nothing is split off, and training examples with a prompt that stands in it are left out. Of hf://datasets/organisation/name the split validation, or test."""
    revision: Revision = None
    """Branch, tag or commit, where uri is hf://datasets/…; main when absent."""


Column = Annotated[str, Field(min_length=1, max_length=128)] | None


class Columns(Model):
    """Where each field of the format stands in the data, if it has another name there."""

    messages: Column = None
    """Column of the turns, for messages."""
    tools: Column = None
    """Column of the tools that the assistant may call."""
    conversations: Column = None
    """Column of the turns, for shareGPT."""
    system: Column = None
    """Column of the system prompt."""
    prompt: Column = None
    """Column of the prompt, for promptCompletion."""
    completion: Column = None
    """Column of the completion, for promptCompletion."""
    instruction: Column = None
    """Column of the instruction."""
    input: Column = None
    """Column of what the instruction is about."""
    output: Column = None
    """Column of the answer to the instruction."""
    text: Column = None
    """Column of plain text."""
    chosen: Column = None
    """Column of the better answer, for preference."""
    rejected: Column = None
    """Column of the worse answer, for preference."""


class MixedSource(Model):
    """One of several sources."""

    uri: Uri
    """Where it lies, as dataset.uri."""
    revision: Revision = None
    """Branch, tag or commit, where uri is hf://datasets/…; main when absent."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1
    """How often each of its examples is trained on in an epoch: 2 is twice, 0.5 is half of them, chosen by their hash."""
    format: DatasetFormat | None = None
    """Shape of its examples; dataset.format, or detected, when absent."""
    columns: Columns | None = None
    """Names of its columns; dataset.columns when absent."""


class DatasetSource(Model):
    """The examples: from one uri, or from several sources."""

    uri: Uri | None = None
    """Where the data lies: s3://bucket/path, gs://bucket/path, az://container/path or pvc://claim/path, one file, a prefix or a pattern (s3://bucket/train-*.parquet); hf://datasets/organisation/name, with a path or pattern in it or the split train; or https:// of one file on a public server. JSON Lines, one JSON array, CSV with a header or Parquet, plain or compressed (gzip, zstd, bzip2, xz)."""
    format: DatasetFormat | None = None
    """Shape of an example; detected from the data when absent. messages: {"messages": [{"role", "content"}]}, with tools also {"tools"}, tool_calls and the role tool. shareGPT: {"conversations": [{"from", "value"}]}. promptCompletion: {"prompt", "completion"}. instruction: {"instruction", "input", "output"}. text: {"text"}. preference: {"prompt", "chosen", "rejected"}, as text or as turns."""
    revision: Revision = None
    """Branch, tag or commit, where uri is hf://datasets/…; main when absent."""
    split: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Split of hf://datasets/organisation/name, as its files are named; train when absent."""
    sources: Annotated[tuple[MixedSource, ...], Field(max_length=16)] = ()
    """Several sources in place of uri, each with its weight. Conversations of different formats mix; other formats do not."""
    columns: Columns = Columns()
    """Names of the data's columns, where they are not those of the format: {prompt: question, completion: answer}."""
    system_prompt: Annotated[str, Field(min_length=1, max_length=16384)] | None = None
    """System prompt put before every conversation that has none. Serve the model with the same one."""
    max_samples: Positive | None = None
    """Most examples that are used, chosen by their hash: a fair sample for a quick try. All when absent."""
    validation: Validation = Validation()
    """The held-out part."""
    secret_ref: SecretRef | None = None
    """Credentials for the data."""

    @property
    def uris(self) -> tuple[str, ...]:
        """Return every URI that data is read from."""
        return tuple(uri for uri in (self.uri, *(one.uri for one in self.sources), self.validation.uri) if uri)

    @property
    def origin(self) -> str:
        """Return where the training data lies, for people."""
        return self.uri or ", ".join(one.uri for one in self.sources)
