"""The shapes that a record may have, and what makes each a usable example.

    messages          {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}],
                       "tools": […]}, tools may be absent
    shareGPT          {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}
    promptCompletion  {"prompt": "…", "completion": "…"}
    instruction       {"instruction": "…", "input": "…", "output": "…"}, input may be absent
    text              {"text": "…"}
    preference        {"prompt": "…", "chosen": "…", "rejected": "…"}, see preference.py

Other fields of a record are ignored, so that identifiers and sources may stay in the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_contract.dataset_spec import Columns, DatasetFormat
from finetune_trainer.data.conversations import from_messages, from_share_gpt, with_system
from finetune_trainer.data.examples import Conversation, Example, PromptCompletion, Text, Turn
from finetune_trainer.data.preference import parse_preference
from finetune_trainer.data.problems import BadExampleError
from finetune_trainer.data.values import names_of, text_of

# In this order: Alpaca's own files have a `text` beside `instruction` and `output`.
FIELDS: dict[DatasetFormat, tuple[str, ...]] = {
    DatasetFormat.MESSAGES: ("messages",),
    DatasetFormat.SHARE_GPT: ("conversations",),
    DatasetFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    DatasetFormat.INSTRUCTION: ("instruction", "output"),
    DatasetFormat.TEXT: ("text",),
    DatasetFormat.PREFERENCE: ("chosen", "rejected"),
}
CHAT = frozenset({DatasetFormat.MESSAGES, DatasetFormat.SHARE_GPT, DatasetFormat.INSTRUCTION})
"""Formats that become conversations."""
_OPTIONAL = ("input", "system", "tools")


_AS_NAMED = Columns()


@dataclass(frozen=True, slots=True)
class Reading:
    """How the records of a source become examples."""

    format: DatasetFormat | None = None
    """Detected record by record where it is not given."""
    columns: Columns = _AS_NAMED
    system_prompt: str | None = None


def parse(value: dict[str, Any], reading: Reading) -> tuple[DatasetFormat, Example]:
    """Return a record's format, given or detected, and the example. Raises BadExampleError."""
    mapped = _mapped(value, reading.columns)
    fields = {**value, **mapped}
    shape = reading.format or _detected(mapped) or detect(fields)
    example = _example(fields, shape)
    if isinstance(example, Conversation):
        if shape is DatasetFormat.SHARE_GPT or "system" in mapped:
            example = with_system(example, fields.get("system"), '"system"')
        example = with_system(example, reading.system_prompt, "dataset.systemPrompt")
    return shape, example


def detect(value: dict[str, Any]) -> DatasetFormat:
    """Return the format whose fields the record has. Raises BadExampleError."""
    if found := _detected(value):
        return found
    wanted = ", ".join("+".join(fields) for fields in FIELDS.values())
    raise BadExampleError(
        f"has the fields {names_of(value)}; wanted is one of: {wanted}; dataset.columns can name others"
    )


def _detected(value: dict[str, Any]) -> DatasetFormat | None:
    return next((shape for shape, fields in FIELDS.items() if all(field in value for field in fields)), None)


def _mapped(value: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """Return the fields that dataset.columns takes from columns of other names."""
    found: dict[str, Any] = {}
    if columns == _AS_NAMED:
        return found
    for field, column in columns:
        if column is None or (column not in value and field in _OPTIONAL):
            continue
        if column not in value:
            raise BadExampleError(
                f'has no "{column}", which dataset.columns.{field} names: its fields: {names_of(value)}'
            )
        found[field] = value[column]
    return found


def _example(value: dict[str, Any], shape: DatasetFormat) -> Example:  # noqa: C901 - one case a format
    for field in FIELDS[shape]:
        if field not in value:
            raise BadExampleError(f'has no "{field}", which {shape} needs (its fields: {names_of(value)})')
    match shape:
        case DatasetFormat.MESSAGES:
            return from_messages(value)
        case DatasetFormat.SHARE_GPT:
            return from_share_gpt(value)
        case DatasetFormat.PROMPT_COMPLETION:
            return PromptCompletion(text_of(value["prompt"], '"prompt"'), text_of(value["completion"], '"completion"'))
        case DatasetFormat.INSTRUCTION:
            return _instruction(value)
        case DatasetFormat.TEXT:
            return Text(text_of(value["text"], '"text"'))
        case DatasetFormat.PREFERENCE:
            return parse_preference(
                value, converse=lambda turns: from_messages({**value, "messages": turns}), text=text_of
            )


def _instruction(value: dict[str, Any]) -> Conversation:
    asked = text_of(value["instruction"], '"instruction"')
    if value.get("input") not in (None, ""):
        asked = "\n\n".join((asked, text_of(value["input"], '"input"')))
    return Conversation((Turn("user", asked), Turn("assistant", text_of(value["output"], '"output"'))))
