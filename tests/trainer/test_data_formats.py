"""Formats beyond the simple ones: ShareGPT, tools and their calls, columns of other names, a system prompt for all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_contract.dataset_spec import Columns, DatasetFormat
from finetune_trainer.data.examples import Call, Conversation, Example, PromptCompletion, Turn
from finetune_trainer.data.formats import Reading, parse
from finetune_trainer.data.problems import BadExampleError
from tests.support.datasets import chat

WEATHER = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {}}}
WRAPPED = [{"type": "function", "function": WEATHER}]


def example(record: dict[str, Any], **reading: Any) -> Example:
    return parse(record, Reading(**reading))[1]


def with_call(arguments: Any, **changes: Any) -> dict[str, Any]:
    """Return a conversation in which a tool is called and answers."""
    call = {"id": "abc", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "Rain in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "weather", "tool_call_id": "abc", "content": '{"rain": true}'},
        {"role": "assistant", "content": "Yes."},
    ]
    return {"messages": turns, "tools": [WEATHER], **changes}


CALLED = Conversation(
    (
        Turn("user", "Rain in Oslo?"),
        Turn("assistant", "", (Call("weather", '{"city": "Oslo"}', "abc"),)),
        Turn("tool", '{"rain": true}', name="weather", call_id="abc"),
        Turn("assistant", "Yes."),
    ),
    json.dumps(WRAPPED),
)


@pytest.mark.parametrize(
    "record",
    [
        with_call({"city": "Oslo"}),
        with_call('{"city":  "Oslo"}', tools=WRAPPED),
        with_call({"city": "Oslo"}, tools=json.dumps(WRAPPED)),
        {name: json.dumps(value) for name, value in with_call({"city": "Oslo"}).items()},
    ],
    ids=["objects", "arguments as text", "tools as text", "cells of a table"],
)
def test_calls_of_tools_are_the_same_however_they_are_written(record: dict[str, Any]) -> None:
    assert example(record) == CALLED
    assert example(record, format=DatasetFormat.MESSAGES) == CALLED


def test_a_conversation_with_tools_goes_to_the_template_as_it_wants_it() -> None:
    assert [turn.message() for turn in CALLED.turns[1:3]] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "id": "abc", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
            ],
        },
        {"role": "tool", "content": '{"rain": true}', "name": "weather", "tool_call_id": "abc"},
    ]


def share_gpt(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in turns], **more}


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        (share_gpt(("human", "Hi"), ("gpt", "Ho")), Conversation((Turn("user", "Hi"), Turn("assistant", "Ho")))),
        (
            share_gpt(("system", "Be nice."), ("User", "Hi"), ("Assistant", "Ho")),
            Conversation((Turn("system", "Be nice."), Turn("user", "Hi"), Turn("assistant", "Ho"))),
        ),
        (
            share_gpt(("human", "Hi"), ("gpt", "Ho"), system="Be nice."),
            Conversation((Turn("system", "Be nice."), Turn("user", "Hi"), Turn("assistant", "Ho"))),
        ),
        (
            {"conversations": chat("Hi", "Ho")["messages"]},
            Conversation((Turn("user", "Hi"), Turn("assistant", "Ho"))),
        ),
        (
            share_gpt(
                ("human", "Rain?"),
                ("function_call", '{"name": "weather", "arguments": {"city": "Oslo"}}'),
                ("observation", "yes"),
                ("gpt", "Yes."),
                tools=json.dumps([WEATHER]),
            ),
            Conversation(
                (
                    Turn("user", "Rain?"),
                    Turn("assistant", "", (Call("weather", '{"city": "Oslo"}'),)),
                    Turn("tool", "yes"),
                    Turn("assistant", "Yes."),
                ),
                json.dumps(WRAPPED),
            ),
        ),
    ],
    ids=["plain", "other names of roles", "system beside it", "roles inside", "function calls"],
)
def test_share_gpt(record: dict[str, Any], wanted: Conversation) -> None:
    assert parse(record, Reading()) == (DatasetFormat.SHARE_GPT, wanted)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (with_call('{"city": "Os'), "call 1 of turn 2 (weather): its arguments: is not JSON: Unterminated string"),
        (with_call("Oslo"), "call 1 of turn 2 (weather): its arguments: is not JSON: Expecting value at column 1"),
        (with_call('["Oslo"]'), "call 1 of turn 2 (weather): its arguments is a list; it must be an object"),
        (with_call({}, tools=[{"type": "function", "function": {}}]), "tool 1 has no name; it must be"),
        (with_call({}, tools="[{"), '"tools" is JSON that cannot be read'),
        (with_call({}, tools={"weather": {}}), '"tools" is an object; it must be a list of functions'),
        (
            {"messages": [*chat("a", "b")["messages"], {"role": "tool", "content": "c"}]},
            "ends with a tool turn: add the answer",
        ),
        (
            {"messages": [{"role": "tool", "content": "c"}, *chat("a", "b")["messages"]]},
            "turn 1 is of the tool, wanted is user",
        ),
        (
            {"messages": [*with_call({})["messages"][:2], *chat("a", "b")["messages"]]},
            "turn 3 is of the user, wanted is tool: turns must alternate",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "tool_calls": [{"name": "x"}]}]},
            "turn 1 (user) calls tools; only the assistant may",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "call 1 of turn 2 has no name of a function",
        ),
        (share_gpt(("human", "Hi"), ("alien", "Ho")), "turn 2 is from 'alien'; use system, human, gpt"),
        (share_gpt(("human", "Hi"), ("gpt", "")), "value of turn 2 (gpt) is empty"),
        (share_gpt(("gpt", "Hi"), ("human", "Ho")), "turn 1 is of the assistant, wanted is user"),
        (share_gpt(("human", "Hi"), ("function_call", "weather()")), "call of turn 2: is not JSON"),
        ({"conversations": []}, '"conversations" is empty'),
        ({"conversations": [["Hi", "Ho"]]}, 'turn 1 is a list; it must be {"from", "value"}'),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_what_is_wrong_with_turns_is_named(record: dict[str, Any], says: str) -> None:
    with pytest.raises(BadExampleError) as caught:
        example(record)
    assert says in str(caught.value)


def test_columns_of_other_names_are_mapped_to_the_formats_fields() -> None:
    columns = Columns(prompt="question", completion="answer")
    record = {"question": "a", "answer": "b", "text": "not this"}
    assert parse(record, Reading(columns=columns)) == (
        DatasetFormat.PROMPT_COMPLETION,
        PromptCompletion("a", "b"),
    )
    assert example({"instruction": "a", "out": "b"}, columns=Columns(output="out", input="context")) == Conversation(
        (Turn("user", "a"), Turn("assistant", "b"))
    )


def test_a_column_of_system_prompts_is_put_before_the_conversation() -> None:
    record = {"persona": "Be brief.", "instruction": "a", "output": "b"}
    found = example(record, columns=Columns(system="persona"))
    assert found == Conversation((Turn("system", "Be brief."), Turn("user", "a"), Turn("assistant", "b")))


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(BadExampleError) as caught:
        example({"q": "a", "answer": "b"}, columns=Columns(prompt="question", completion="answer"))
    assert str(caught.value) == 'has no "question", which dataset.columns.prompt names: its fields: q, answer'


def test_a_system_prompt_is_put_before_conversations_that_have_none() -> None:
    with_it, without = chat("a", "b", system="Mine."), chat("a", "b")
    prompts = [example(one, system_prompt="Ours.") for one in (with_it, without)]
    assert [one.system for one in prompts if isinstance(one, Conversation)] == ["Mine.", "Ours."]
    assert example({"prompt": "a", "completion": "b"}, system_prompt="Ours.") == PromptCompletion("a", "b")
