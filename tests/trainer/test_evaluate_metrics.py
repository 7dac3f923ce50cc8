"""Scores of answers: what counts as right, as valid and as similar."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest

from finetune_contract.exit_codes import ExitCode
from finetune_contract.spec import Evaluation
from finetune_trainer.data.dataset import Question
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.json_answers import is_json, schema_check
from finetune_trainer.evaluation.metrics import scores_of
from finetune_trainer.evaluation.rouge import longest_common_subsequence, rouge_l, words


def score(metric: str, answer: str, expected: str = "", **settings: Any) -> float:
    evaluation = Evaluation.model_validate({"metrics": [metric], **settings})
    (found,) = scores_of([Question("", expected)], [answer], evaluation).values()
    return found[0]


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [(" billing | 7 \n", "billing | 7", 1), ("Billing | 7", "billing | 7", 0), ("", "", 1), ("", "x", 0)],
)
def test_an_exact_answer_may_differ_in_outer_blanks_only(answer: str, expected: str, right: int) -> None:
    assert score("exactMatch", answer, expected) == right


@pytest.mark.parametrize(
    ("pattern", "answer", "matches"),
    [
        pytest.param(r"\d{3}", "order 123 it is", 1, id="anywhere"),
        pytest.param(r"^\w+ \| \d+$", "billing | 7\n", 1, id="the whole answer, blanks trimmed"),
        pytest.param(r"^\w+ \| \d+$", "Sure! billing | 7", 0, id="more than the pattern"),
        pytest.param(r"^\w+$", "one\ntwo", 0, id="$ is the end of the answer, not of a line"),
        pytest.param(r"(?i)(?<!un)happy", "so HAPPY", 1, id="flags and look-behind"),
        pytest.param(r"é+$", "café", 1, id="any alphabet"),
    ],
)
def test_a_pattern_is_looked_for(pattern: str, answer: str, matches: int) -> None:
    assert score("regex", answer, regex={"pattern": pattern}) == matches


def test_a_pattern_of_exponential_time_counts_as_no_match() -> None:
    assert score("regex", "a" * 60 + "!", regex={"pattern": r"^(a|aa)+$"}) == 0


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        ('{"team": "billing"}', True),
        (" [1, 2.5e3, null]\n", True),
        ("42", True),
        ('```json\n{"team": "billing"}\n```', False),
        ('{"team": "billing"} I hope this helps!', False),
        ("{'team': 'billing'}", False),
        ('{"share": NaN}', False),
        ('{"share": -Infinity}', False),
        ("", False),
        pytest.param("[" * 100_000, False, id="brackets without end"),
        pytest.param("9" * 10_000, False, id="digits without end"),
    ],
)
def test_json_is_the_whole_answer_and_json(answer: str, valid: bool) -> None:
    assert is_json(answer) is valid
    assert score("jsonValid", answer) == valid


TICKET = {
    "type": "object",
    "required": ["team"],
    "additionalProperties": False,
    "properties": {"team": {"enum": ["billing", "returns"]}, "tags": {"items": {"$ref": "#/$defs/tag"}}},
    "$defs": {"tag": {"type": "string", "maxLength": 5}},
}


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ('{"team": "billing"}', 1),
        ('{"team": "billing", "tags": ["late"]}', 1),
        ('{"team": "billing", "tags": ["too long"]}', 0),
        ('{"team": "sales"}', 0),
        ('{"team": "billing", "mood": 1}', 0),
        ("[]", 0),
        ("billing", 0),
    ],
)
def test_an_answer_fits_a_schema(answer: str, fits: int) -> None:
    assert score("jsonSchema", answer, jsonSchema=TICKET) == fits


def test_the_draft_is_the_schemas_own() -> None:
    """In draft 7 `items` may be a list, one schema a place; since 2020-12 that is prefixItems."""
    fits = schema_check({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]})

    assert fits('["a", 1]')
    assert not fits("[1]")


def test_a_schema_that_goes_in_circles_fits_nothing() -> None:
    assert not schema_check({"$ref": "#"})("{}")


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"type": "strin"}, r"'strin' .* at \$.type"),
        ({"properties": {"a": {"pattern": "("}}}, r"at \$.properties.a.pattern"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, r"\$ref #/\$defs/none is not in the schema"),
        ({"$ref": "https://schemas.example.com/a"}, "nothing is fetched"),
    ],
)
def test_a_schema_that_cannot_be_used_is_named(schema: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TrainerError, match=sentence) as failure:
        schema_check(schema)
    assert failure.value.code is ExitCode.CONFIG_INVALID


# Lin 2004, section 3.1: "police killed the gunman" against three answers, the last one with the words of the second.
LIN = "police killed the gunman"


@pytest.mark.parametrize(
    ("answer", "expected", "f1"),
    [
        ("police kill the gunman", LIN, 3 / 4),
        ("the gunman kill police", LIN, 2 / 4),
        ("the gunman police killed", LIN, 2 / 4),
        ("The police, killed: THE-gunman!", "the police killed the gunman", 1),
        ("police", LIN, 2 / 5),
        ("", LIN, 0),
        ("", "", 1),
        ("день добрый", "добрый день", 1 / 2),
        ("今天天气好", "今天天气很好", 10 / 11),
    ],
)
def test_rouge_l_by_hand(answer: str, expected: str, f1: float) -> None:
    assert rouge_l(answer, expected) == pytest.approx(f1)
    assert score("rouge", answer, expected) == pytest.approx(f1)


def test_words_are_those_of_rouge_score_for_english() -> None:
    assert words("It's 3.5 per_cent, U.S.-made.") == ["it", "s", "3", "5", "per", "cent", "u", "s", "made"]


def test_the_bits_say_what_the_table_says() -> None:
    dice = random.Random(0)  # noqa: S311
    for length, letters in product((1, 5, 70, 130), ("ab", "abcdefgh")):
        first, second = ([dice.choice(letters) for _ in range(length + extra)] for extra in (0, 3))
        assert longest_common_subsequence(first, second) == by_table(first, second)


def by_table(first: list[str], second: list[str]) -> int:
    """The textbook's dynamic programme."""
    row = [0] * (len(second) + 1)
    for one in first:
        above, row = row, [0]
        for place, two in enumerate(second):
            row.append(above[place] + 1 if one == two else max(above[place + 1], row[place]))
    return row[-1]
