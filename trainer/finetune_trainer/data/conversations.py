"""Turns of a conversation, as OpenAI's messages and as ShareGPT write them, with tools, their calls and answers.

The order is checked here: a system turn may come first, user and assistant take turns, and between an assistant's call
and its next turn stand the answers of tools. The assistant has the last word, or there is nothing to learn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

from finetune_trainer.data.examples import Call, Conversation, Role, Turn
from finetune_trainer.data.problems import BadExampleError
from finetune_trainer.data.values import kind_of, list_of, object_of, text_of

_ROLES: tuple[str, ...] = get_args(Role)
_MESSAGE = '{"role", "content"}'
_CALL = '{"type": "function", "function": {"name", "arguments"}}'
# Who speaks, in the data sets that go by the name of ShareGPT.
SPEAKERS: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


def from_messages(value: dict[str, Any]) -> Conversation:
    """Return the conversation of a record with `messages` and perhaps `tools`. Raises BadExampleError."""
    items = list_of(value["messages"], '"messages"', _MESSAGE)
    return _conversation(items, "messages", _message, tools=value.get("tools"))


def from_share_gpt(value: dict[str, Any]) -> Conversation:
    """Return the conversation of a record with `conversations` and perhaps `system` and `tools`."""
    items = list_of(value["conversations"], '"conversations"', '{"from", "value"}')
    return _conversation(items, "conversations", _spoken, tools=value.get("tools"))


def with_system(conversation: Conversation, prompt: object, what: str) -> Conversation:
    """Return the conversation with a system prompt in front, if it has none and the prompt says something."""
    if conversation.system is not None or prompt in (None, ""):
        return conversation
    return Conversation((Turn("system", text_of(prompt, what)), *conversation.turns), conversation.tools)


def _conversation(items: list[Any], name: str, read: Any, *, tools: object) -> Conversation:
    if not items:
        raise BadExampleError(f'"{name}" is empty; add a user and an assistant turn')
    turns = tuple(read(item, number) for number, item in enumerate(items, start=1))
    _check_order(turns)
    return Conversation(turns, _tools(tools))


def _message(value: object, number: int) -> Turn:
    if not isinstance(value, dict):
        raise BadExampleError(f"turn {number} is {kind_of(value)}; it must be {_MESSAGE}")
    role = value.get("role")
    if role not in _ROLES:
        raise BadExampleError(f"turn {number} has the role {role!r}; use system, user, assistant or tool")
    calls = tuple(_calls(value.get("tool_calls"), role, number))
    content = value.get("content")
    if calls and content in (None, ""):
        return Turn(role, "", calls)
    text = text_of(content, f"content of turn {number} ({role})")
    if role != "tool":
        return Turn(role, text, calls)
    return Turn(role, text, name=str(value.get("name") or ""), call_id=str(value.get("tool_call_id") or ""))


def _spoken(value: object, number: int) -> Turn:
    if not isinstance(value, dict):
        raise BadExampleError(f'turn {number} is {kind_of(value)}; it must be {{"from", "value"}}')
    if "role" in value and "from" not in value:
        return _message(value, number)
    speaker = value.get("from")
    role = SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None or not isinstance(speaker, str):
        raise BadExampleError(f"turn {number} is from {speaker!r}; use system, human, gpt, function_call or tool")
    text = text_of(value.get("value"), f"value of turn {number} ({speaker})")
    if speaker.lower() == "function_call":
        what = f"call of turn {number}"
        calls = list_of(text, what, "calls") if text.lstrip().startswith("[") else [text]
        return Turn("assistant", "", tuple(_call(one, what) for one in calls))
    return Turn(role, text)


def _calls(value: object, role: str, number: int) -> Iterator[Call]:
    if not value:
        return
    if role != "assistant":
        raise BadExampleError(f"turn {number} ({role}) calls tools; only the assistant may")
    for count, item in enumerate(list_of(value, f"tool_calls of turn {number}", _CALL), start=1):
        yield _call(item, f"call {count} of turn {number}")


def _call(value: object, what: str) -> Call:
    outer = object_of(value, what)
    inner = outer.get("function", outer)
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or not name:
        raise BadExampleError(f"{what} has no name of a function; it must be {_CALL}")
    given = inner.get("arguments")
    arguments = object_of({} if given is None else given, f"{what} ({name}): its arguments")
    return Call(name, json.dumps(arguments, ensure_ascii=False), str(outer.get("id") or ""))


def _tools(value: object) -> str:
    """Return JSON of the tools in the form that templates know, the function's schema inside an object."""
    if value in (None, "", []):
        return ""
    tools = [_tool(one, number) for number, one in enumerate(list_of(value, '"tools"', "functions"), start=1)]
    return json.dumps(tools, ensure_ascii=False) if tools else ""


def _tool(value: object, number: int) -> dict[str, Any]:
    tool = object_of(value, f"tool {number}")
    wrapped = tool if "function" in tool else {"type": "function", "function": tool}
    function = object_of(wrapped["function"], f"tool {number}")
    if not isinstance(function.get("name"), str):
        raise BadExampleError(
            f'tool {number} has no name; it must be {{"type": "function", "function": {{"name", …}}}}'
        )
    return {**wrapped, "function": function}


def _check_order(turns: tuple[Turn, ...]) -> None:
    start = 1 if turns[0].role == "system" else 0
    before: Turn | None = None
    for number, turn in enumerate(turns[start:], start=start + 1):
        if turn.role == "system":
            raise BadExampleError(f"turn {number} is a system turn; only the first turn may be one")
        wanted = _may_follow(before)
        if turn.role not in wanted:
            either = " or ".join(wanted)
            raise BadExampleError(f"turn {number} is of the {turn.role}, wanted is {either}: turns must alternate")
        before = turn
    if not any(turn.role == "assistant" for turn in turns):
        raise BadExampleError("has no assistant turn; there is nothing to learn from it")
    if turns[-1].role != "assistant":
        raise BadExampleError(f"ends with a {turns[-1].role} turn: add the answer or remove that turn")


def _may_follow(before: Turn | None) -> tuple[Role, ...]:
    if before is None:
        return ("user",)
    if before.role == "user":
        return ("assistant",)
    if before.role == "tool":
        return ("assistant", "tool")
    # A call may stand in the text, too, so a tool may answer any turn; a call in `tool_calls` wants its answer.
    return ("tool",) if before.calls else ("user", "tool")
