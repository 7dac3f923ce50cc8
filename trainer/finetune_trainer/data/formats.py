"""The shapes that a line may have, and what makes each a usable example.

    messages          {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    promptCompletion  {"prompt": "…", "completion": "…"}
    instruction       {"instruction": "…", "input": "…", "output": "…"}, input may be absent
    text              {"text": "…"}

Other fields of a line are ignored, so that identifiers and sources may stay in the data.
"""

from __future__ import annotations

from typing import Any, get_args

from finetune_contract.spec import DatasetFormat
from finetune_trainer.data.examples import Conversation, Example, PromptCompletion, Role, Text, Turn
from finetune_trainer.data.problems import BadExampleError

# In this order: Alpaca's own files have a `text` beside `instruction` and `output`.
FIELDS: dict[DatasetFormat, tuple[str, ...]] = {
    DatasetFormat.MESSAGES: ("messages",),
    DatasetFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    DatasetFormat.INSTRUCTION: ("instruction", "output"),
    DatasetFormat.TEXT: ("text",),
}
_ROLES: tuple[str, ...] = get_args(Role)
_NOT_SUPPORTED = {"conversations": "ShareGPT", "chosen": "preference pairs"}


def detect(value: dict[str, Any]) -> DatasetFormat:
    """Return the format whose fields the object has. Raises BadExampleError."""
    for shape, fields in FIELDS.items():
        if all(field in value for field in fields):
            return shape
    for field, name in _NOT_SUPPORTED.items():
        if field in value:
            raise BadExampleError(f"looks like {name}, which is not supported: convert it to messages")
    wanted = ", ".join("+".join(fields) for fields in FIELDS.values())
    raise BadExampleError(f"has the fields {_names(value)}; wanted is one of: {wanted}")


def parse(value: dict[str, Any], shape: DatasetFormat) -> Example:
    """Return the object as an example of that format. Raises BadExampleError."""
    for field in FIELDS[shape]:
        if field not in value:
            raise BadExampleError(f'has no "{field}", which {shape} needs (its fields: {_names(value)})')
    match shape:
        case DatasetFormat.MESSAGES:
            return Conversation(_turns(value["messages"]))
        case DatasetFormat.PROMPT_COMPLETION:
            return PromptCompletion(_text(value["prompt"], '"prompt"'), _text(value["completion"], '"completion"'))
        case DatasetFormat.INSTRUCTION:
            return _instruction(value)
        case DatasetFormat.TEXT:
            return Text(_text(value["text"], '"text"'))


def _instruction(value: dict[str, Any]) -> Conversation:
    """Return the two turns; the input follows the instruction after an empty line."""
    asked = _text(value["instruction"], '"instruction"')
    if value.get("input") not in (None, ""):
        asked = "\n\n".join((asked, _text(value["input"], '"input"')))
    return Conversation((Turn("user", asked), Turn("assistant", _text(value["output"], '"output"'))))


def _turns(value: object) -> tuple[Turn, ...]:
    if not isinstance(value, list):
        raise BadExampleError(f'"messages" is {_kind(value)}; it must be a list of {{"role", "content"}}')
    if not value:
        raise BadExampleError('"messages" is empty; add a user and an assistant turn')
    turns = tuple(_turn(item, number) for number, item in enumerate(value, start=1))
    _check_order(turns)
    return turns


def _turn(value: object, number: int) -> Turn:
    if not isinstance(value, dict):
        raise BadExampleError(f'turn {number} is {_kind(value)}; it must be {{"role", "content"}}')
    role = value.get("role")
    if role not in _ROLES:
        raise BadExampleError(f"turn {number} has the role {role!r}; use system, user or assistant")
    if value.get("tool_calls"):
        raise BadExampleError(f"turn {number} calls tools, which is not supported: write the call into its content")
    return Turn(role, _text(value.get("content"), f"content of turn {number} ({role})"))


def _check_order(turns: tuple[Turn, ...]) -> None:
    """A system turn may come first; then user and assistant take turns, and the assistant has the last word."""
    spoken = turns[1:] if turns[0].role == "system" else turns
    first = len(turns) - len(spoken) + 1
    for number, turn in enumerate(spoken, start=first):
        wanted = "user" if (number - first) % 2 == 0 else "assistant"
        if turn.role == "system":
            raise BadExampleError(f"turn {number} is a system turn; only the first turn may be one")
        if turn.role != wanted:
            raise BadExampleError(f"turn {number} is of the {turn.role}, wanted is {wanted}: turns must alternate")
    if len(spoken) < 2:  # noqa: PLR2004 - a question and an answer
        raise BadExampleError("has no assistant turn; there is nothing to learn from it")
    if turns[-1].role != "assistant":
        raise BadExampleError("ends with a user turn: add the answer or remove that turn")


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise BadExampleError(f"{what} is {_kind(value)}; it must be a string")
    if not value.strip():
        raise BadExampleError(f"{what} is empty; fill it or remove the line")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadExampleError(f"{what} has half of a UTF-16 pair (\\ud800 to \\udfff alone); write the whole character")
    return value


def _kind(value: object) -> str:
    names = {type(None): "null", list: "a list", dict: "an object", bool: "a boolean", int: "a number"}
    return names.get(type(value), "a number" if isinstance(value, float) else "a string")


def _names(value: dict[str, Any]) -> str:
    return ", ".join(list(value)[:8]) or "none"
