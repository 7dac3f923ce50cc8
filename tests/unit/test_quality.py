"""What `make quality` asks and counts: its questions are fair, and a promise that is missed is seen."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from benchmarks.fp8_quality import compared
from benchmarks.quality import facts, orders
from benchmarks.quality.facts import CHANCE, CITIES, TRAINED, UNSEEN, Question, homes, lower_end, questions
from benchmarks.quality.figure import Figure, at_least, at_most, table


@pytest.mark.parametrize(
    ("figure", "holds"),
    [
        pytest.param(at_least("f", before=0.1, after=0.96, bound=0.95, base_below=0.2), True, id="rises"),
        pytest.param(at_least("f", before=0.1, after=0.95, bound=0.95, base_below=0.2), False, id="not enough"),
        pytest.param(at_least("f", before=0.3, after=0.99, bound=0.95, base_below=0.2), False, id="was there before"),
        pytest.param(at_most("f", before=None, after=0.02, bound=0.02), True, id="within"),
        pytest.param(at_most("f", before=None, after=0.021, bound=0.02), False, id="outside"),
        pytest.param(at_most("f", before=None, after=float("nan"), bound=0.02), False, id="not a number"),
    ],
)
def test_a_figure_holds_or_not(figure: Figure, holds: bool) -> None:
    assert figure.holds is holds
    assert ("MISSED" in table([figure])) is not holds


def test_unseen_wordings_are_not_trained_on() -> None:
    trained = {one.prompt for one in questions(TRAINED)}
    assert not trained & {one.prompt for one in questions(UNSEEN)}
    assert len(trained) == len(TRAINED) * len(facts.PEOPLE)


def test_a_guess_is_right_as_often_as_chance_says() -> None:
    lived_in = list(homes().values())
    assert {lived_in.count(city) for city in CITIES} == {len(facts.PEOPLE) * CHANCE}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Ada lives in Oslo.", True),
        ("Ada lives in Lima.", False),
        ("Oslo or Lima.", False),
        ("I do not know.", False),
    ],
)
def test_an_answer_names_the_city_and_no_other(answer: str, right: bool) -> None:
    assert Question("Where does Ada live?", "Ada", "Oslo").is_right(answer) is right


def test_the_interval_is_wide_where_people_are_known_as_a_whole() -> None:
    """Half of the answers are right either way: one fact known in all wordings is one fact, not four."""
    asked = questions(UNSEEN)
    by_person = [one.person in facts.PEOPLE[::2] for one in asked]
    by_wording = [index % len(facts.PEOPLE) % 2 == (index // len(facts.PEOPLE)) % 2 for index in range(len(asked))]
    assert sum(by_person) == sum(by_wording) == len(asked) // 2
    assert lower_end(asked, by_person) < lower_end(asked, by_wording) <= 0.5


def test_orders_are_answered_by_json_of_the_schema() -> None:
    from jsonschema import validate

    dice = random.Random(1)  # noqa: S311 - repeatable, not secret
    for _ in range(50):
        validate(json.loads(orders.example(dice)["answer"]), orders.SCHEMA)


def _losses(base: float, tuned: float, steps: tuple[float, ...]) -> dict[str, Any]:
    points = [{"step": number, "value": loss} for number, loss in enumerate(steps, 1)]
    return {"base": {"loss": base}, "tuned": {"loss": tuned}, "training": {"heldOutLosses": points}}


@pytest.mark.parametrize(
    ("found", "right"),
    [
        pytest.param(_losses(3.02, 2.01, (2.5, 2.01)), True, id="near"),
        pytest.param(_losses(3.04, 2.0, (2.5, 2.0)), False, id="base too far"),
        pytest.param(_losses(3.0, 2.03, (2.5, 2.0)), False, id="tuned too far"),
        pytest.param(_losses(3.0, 2.0, (2.4, 2.0)), False, id="a step too far"),
    ],
)
def test_losses_in_fp8_are_held_against_those_in_bfloat16(found: dict[str, Any], right: bool) -> None:
    assert compared(found, _losses(3.0, 2.0, (2.5, 2.0)))["right"] is right


def test_losses_that_have_not_moved_say_nothing() -> None:
    same = _losses(3.0, 2.95, (2.95,))

    assert compared(same, same)["right"] is False
