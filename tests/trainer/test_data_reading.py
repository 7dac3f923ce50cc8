"""Bad input of every kind is named by file and line, with what to do; good input is read as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.exit_codes import ExitCode
from finetune_trainer.data.examples import Conversation, PromptCompletion, Text, Turn
from finetune_trainer.data.files import data_digest, data_files
from finetune_trainer.data.formats import Reading
from finetune_trainer.data.parts import Part
from finetune_trainer.data.survey import examples, survey
from finetune_trainer.errors import TrainerError
from tests.support.datasets import chat, chats, lines, write_lines

AS_IT_IS = Reading()
GOOD = lines([chat("Why?", "So.")])


def part(path: Path, reading: Reading = AS_IT_IS) -> Part:
    """Return a file or folder as the one source of a data set."""
    return Part(data_files(f"file://{path}", path.parent), reading)


def refusal(folder: Path, content: bytes, given: DatasetFormat | None = None) -> TrainerError:
    """Read a file of that content and return how it is refused."""
    (folder / "data.jsonl").write_bytes(content)
    with pytest.raises(TrainerError) as caught:
        survey([part(folder / "data.jsonl", Reading(given))])
    return caught.value


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD + b'{"messages": [{"role": "us', "data.jsonl line 2: the last line ends in the middle of its JSON"),
        (GOOD + b"not json\n", "data.jsonl line 2: is not JSON: Expecting value at column 1"),
        (GOOD + b'{"a": "\x01"}\n', "line 2: is not JSON: Invalid control character at column 8"),
        (GOOD + b"[1, 2]\n", "line 2: is JSON but not an object: write {…}"),
        (b'{\n"text": "a"\n}\n', "line 1: one JSON object must stand on one line"),
        (GOOD.decode().encode("utf-16"), "data.jsonl: is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8)"),
        (GOOD.decode().encode("utf-16-le"), "data.jsonl: looks like UTF-16 or UTF-32"),
        (
            lines([chat("Où?", "Là.")]).decode().encode("latin-1"),
            "line 1: is not UTF-8 (byte 0xf9 at position 44; Latin-1 perhaps): convert",
        ),
        (b"PK\x03\x04\x14", "data.jsonl: is a zip archive (an Excel file is one, too): unpack it"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "data.jsonl: is a Git LFS pointer, not the data: run git lfs",
        ),
        (b"\x7fELF\x02\x01\x00\x00and more text", "data.jsonl: is binary: wanted is JSON Lines, a JSON array, CSV"),
        (b'{"a":' * 100_000 + b"\n", "line 1: is not JSON that can be read: nested too deeply"),
    ],
    ids=[
        "cut off",
        "not JSON",
        "a control character",
        "not an object",
        "object over several lines",
        "UTF-16 with its mark",
        "UTF-16 without",
        "Latin-1",
        "zip",
        "pointer",
        "binary",
        "nested",
    ],
)
def test_a_file_that_is_not_json_lines(tmp_path: Path, content: bytes, says: str) -> None:
    error = refusal(tmp_path, content)
    assert error.code == ExitCode.DATASET_INVALID
    assert says in error.message


def turns(*roles_and_contents: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in roles_and_contents]}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"messages": "hello"}, '"messages" is a string; it must be a list'),
        ({"messages": []}, '"messages" is empty'),
        ({"messages": ["hello"]}, 'turn 1 is a string; it must be {"role", "content"}'),
        (turns(("user", "Hi"), ("assistant", None)), "content of turn 2 (assistant) is null; it must be a string"),
        (turns(("user", [{"type": "text"}]), ("assistant", "Hi")), "content of turn 1 (user) is a list"),
        (turns(("user", 3), ("assistant", "Hi")), "content of turn 1 (user) is a number"),
        (turns(("user", "Hi"), ("bot", "Ho")), "turn 2 has the role 'bot'; use system, user, assistant or tool"),
        (turns(("user", "Hi"), ("assistant", " \n")), "content of turn 2 (assistant) is empty"),
        (turns(("user", "Hi"), ("user", "Hi?")), "turn 2 is of the user, wanted is assistant: turns must alternate"),
        (turns(("assistant", "Hi"), ("user", "Hi?")), "turn 1 is of the assistant, wanted is user"),
        (turns(("user", "a"), ("system", "b"), ("assistant", "c")), "turn 2 is a system turn; only the first"),
        (turns(("user", "Hi")), "has no assistant turn"),
        (turns(("system", "Be nice.")), "has no assistant turn"),
        (turns(("user", "a"), ("assistant", "b"), ("user", "c")), "ends with a user turn: add the answer"),
        ({"prompt": "a", "completion": None}, '"completion" is null; it must be a string'),
        ({"prompt": "", "completion": "b"}, '"prompt" is empty; fill it or remove the line'),
        ({"instruction": "a", "output": ["b"]}, '"output" is a list; it must be a string'),
        ({"instruction": "a", "input": 3, "output": "b"}, '"input" is a number; it must be a string'),
        ({"text": True}, '"text" is a boolean; it must be a string'),
        ({"text": "half \ud83e"}, '"text" has half of a UTF-16 pair'),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, '"chosen" and "rejected" must both be strings, or both lists'),
        (
            {"question": "a", "answer": "b"},
            "has the fields question, answer; wanted is one of: messages, conversations, ",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_line_that_is_no_example(tmp_path: Path, record: dict[str, Any], says: str) -> None:
    error = refusal(tmp_path, b"\n" + json.dumps(record).encode() + b"\n")
    assert error.code == ExitCode.DATASET_INVALID
    assert f"data.jsonl line 2: {says}" in error.message


def test_the_first_five_bad_lines_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    error = refusal(tmp_path, b"".join(b"{} \n" if number % 2 else GOOD for number in range(16)))
    assert [f"line {number}:" in error.message for number in (2, 4, 6, 8, 10, 12)] == [True] * 5 + [False]
    assert error.message.endswith("(and 3 more bad lines)")


def test_mixed_formats_name_both_and_where_they_stand(tmp_path: Path) -> None:
    write_lines(tmp_path / "data" / "a.jsonl", [chat("Why?", "So.")])
    write_lines(tmp_path / "data" / "b.jsonl", [{"text": "Only text."}])
    with pytest.raises(TrainerError, match=r"b\.jsonl line 1: is text, but a\.jsonl line 1 is messages") as caught:
        survey([part(tmp_path / "data")])
    assert caught.value.code == ExitCode.DATASET_INVALID


def test_a_given_format_is_held_against_every_line(tmp_path: Path) -> None:
    error = refusal(tmp_path, GOOD, DatasetFormat.PROMPT_COMPLETION)
    assert 'line 1: has no "prompt", which promptCompletion needs (its fields: messages)' in error.message


@pytest.mark.parametrize("content", [b"", b"\n  \n"], ids=["no byte", "blank lines"])
def test_an_empty_data_set_is_too_small(tmp_path: Path, content: bytes) -> None:
    error = refusal(tmp_path, content)
    assert error.code == ExitCode.DATASET_TOO_SMALL
    assert "has no examples" in error.message


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", r"Nothing lies at dataset\.uri"),
        ("text", r"holds 1 objects, none of them \*\.jsonl, .*; the first is a\.txt: name the data so"),
        ("text/*.csv", r"none of the 1 objects beside it matches \(the first is a\.txt\): correct the pattern"),
    ],
    ids=["nothing there", "no data below", "no match"],
)
def test_no_data_at_the_uri(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a,b")
    with pytest.raises(TrainerError, match=says) as caught:
        data_files(f"file://{tmp_path}/{name}", tmp_path)
    assert caught.value.code == ExitCode.DATASET_NOT_FOUND


@pytest.mark.parametrize(
    ("record", "shape", "example"),
    [
        (
            {"id": 7, **chat("Why?", "So.", system="Be brief.")},
            DatasetFormat.MESSAGES,
            Conversation((Turn("system", "Be brief."), Turn("user", "Why?"), Turn("assistant", "So."))),
        ),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3", "text": "Alpaca's own"},
            DatasetFormat.INSTRUCTION,
            Conversation((Turn("user", "Add.\n\n1 2"), Turn("assistant", "3"))),
        ),
        (
            {"instruction": "Speak.", "input": "", "output": "Woof"},
            DatasetFormat.INSTRUCTION,
            Conversation((Turn("user", "Speak."), Turn("assistant", "Woof"))),
        ),
        ({"prompt": "a ", "completion": "b"}, DatasetFormat.PROMPT_COMPLETION, PromptCompletion("a ", "b")),
        ({"text": " as it stands\n"}, DatasetFormat.TEXT, Text(" as it stands\n")),
    ],
    ids=["messages", "instruction with input", "instruction without", "promptCompletion", "text"],
)
def test_every_format_is_detected(tmp_path: Path, record: Any, shape: DatasetFormat, example: object) -> None:
    write_lines(tmp_path / "data.jsonl", [record])
    data = part(tmp_path / "data.jsonl")
    assert survey([data]).format == shape
    assert [one for _, one in examples([data])] == [example]


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + lines(chats(3)).replace(b"\n", b"\r\n\r\n").rstrip()
    (tmp_path / "data.jsonl").write_bytes(content)
    assert survey([part(tmp_path / "data.jsonl")]).examples == 3


def test_all_files_below_a_prefix_are_read_in_order_and_hashed(bucket: str, tmp_path: Path) -> None:
    from finetune_contract.run_config import Use
    from finetune_trainer.storage import open_store

    store = open_store(bucket, Use.DATASET)
    for name in ("b.jsonl", "a/one.jsonl", "notes.txt"):
        store.write(f"{bucket}/data/{name}", lines([{"text": name}]))
    files = data_files(f"{bucket}/data", tmp_path)
    found = examples([Part(files, Reading())])
    assert [text for _, text in found] == [Text("a/one.jsonl"), Text("b.jsonl")]
    store.write(f"{bucket}/data/b.jsonl", lines([{"text": "changed"}]))
    assert data_digest(data_files(f"{bucket}/data", tmp_path / "again")) != data_digest(files)
