"""Counts about the texts: damaged letters, labels, near duplicates; in memory that does not grow with the texts."""

from __future__ import annotations

import random
import tracemalloc
from array import array

import pytest

from finetune_trainer.data import near
from finetune_trainer.data.checks import LABELS, Checks, damages
from finetune_trainer.data.examples import Conversation, Example, PromptCompletion, Text, Turn, example_digest
from finetune_trainer.data.near import NearDuplicates


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Ça va où? — “Très bien”, naïve cœur: 5 € 🦙 日本語", set()),
        ("NÃO É SÃO PAULO", set()),
        ("tab\tand\nnew line\r\n", set()),
        ("a letter \ufffd lost", {"U+FFFD"}),
        ("Ça va où? — “Très bien” naïve".encode().decode("latin-1"), {"mojibake"}),
        ("Itâ€™s cafÃ©", {"mojibake"}),
        ("one \x00 in much plain text that goes on and on", set()),
        ("\x01\x02\x03\x04abc", {"control characters"}),
        ("\x05\x06Ã© \ufffd", {"control characters", "mojibake", "U+FFFD"}),
    ],
)
def test_damaged_letters_are_known(text: str, kinds: set[str]) -> None:
    assert damages(PromptCompletion("A plain prompt", text)) == kinds


def test_damage_is_counted_by_example_and_kind() -> None:
    checks = Checks()
    for text in ("fine", "cafÃ© \ufffd", "\ufffd"):
        checks.add(Text(text))
    assert (checks.damaged, checks.damages) == (2, {"U+FFFD": 2, "mojibake": 1})


def labels(answers: list[str]) -> dict[str, int]:
    checks = Checks()
    for number, answer in enumerate(answers):
        checks.add(PromptCompletion(f"question {number}", answer))
    return checks.labels


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (["yes", "no ", "yes", " yes"], {"yes": 3, "no": 1}),
        (["yes", "no", "It depends on so many things that nobody knows."], {}),
        ([f"{number}" for number in range(LABELS + 1)], {}),
    ],
    ids=["few and short", "a long one", "many"],
)
def test_labels_are_counted_where_there_are_any(answers: list[str], found: dict[str, int]) -> None:
    assert labels(answers) == found


def test_text_has_no_labels() -> None:
    checks = Checks()
    checks.add(Text("yes"))
    assert checks.labels == {}


WORDS = [
    f"{a}{b}" for a in ("ba", "do", "ki", "lu", "me", "ny", "po", "ra") for b in ("ton", "mir", "sel", "vag", "lop")
]
ASK = "Classify the following review of a product as positive or negative, and give your reason in one sentence: "


def story(number: int, words: int = 60) -> list[str]:
    dice = random.Random(number)  # noqa: S311
    return [dice.choice(WORDS) for _ in range(words)]


def near_of(examples: list[Example]) -> int:
    found, wholes = NearDuplicates(), array("Q")
    for example in examples:
        found.add(example)
        wholes.append(example_digest(example))
    return found.count(wholes)


def test_texts_that_differ_by_a_word_are_found_and_others_are_not() -> None:
    stories = [story(number) for number in range(1500)]
    changed = [[*words[:30], "another", *words[31:]] for words in stories[:200]]
    found = near_of([Text(" ".join(words)) for words in (*stories, *changed)])
    assert 150 <= found <= 200


def test_exact_duplicates_are_counted_elsewhere() -> None:
    stories: list[Example] = [Text(" ".join(story(number))) for number in range(100)]
    assert near_of(stories + stories) == 0


def test_case_and_blanks_make_no_difference() -> None:
    stories = [" ".join(story(number)) for number in range(100)]
    assert near_of([*map(Text, stories), *(Text(f" {text.upper()}\n") for text in stories)]) == 100


@pytest.mark.parametrize("system", [None, "You are " * 200], ids=["in the prompt", "in the system prompt"])
def test_an_instruction_that_stands_in_every_prompt_makes_none_alike(system: str | None) -> None:
    first = () if system is None else (Turn("system", system),)
    ask = ASK if system is None else ""
    asked = [
        Conversation((*first, Turn("user", ask + " ".join(story(n, 8))), Turn("assistant", "positive")))
        for n in range(700)
    ]
    assert near_of([*asked]) < 10


@pytest.mark.parametrize("text", ["", "a", "ab", "日"])
def test_very_short_texts_are_no_trouble(text: str) -> None:
    assert near_of([Text(text), Text(text.upper() + " ")]) == (1 if text.upper() + " " != text else 0)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "MOST", 600)
    found = NearDuplicates()
    text = Text(" ".join(story(1, 1000)))
    found.add(text)
    tracemalloc.start()
    try:
        for _ in range(1500):
            found.add(text)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
    assert found.count(array("Q", range(1501))) == 599
