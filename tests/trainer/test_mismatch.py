"""KTO's mismatched rows: whose answer goes to which prompt, and what such a row holds."""

from __future__ import annotations

import pytest

from finetune_trainer.preference.mismatch import mismatched, partners


def row(prompt: list[int], answer: list[int]) -> dict[str, list[int]]:
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def parts(one: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    """Return prompt and answer."""
    prompt = one["labels"].count(-100)
    return one["input_ids"][:prompt], one["input_ids"][prompt:]


SORTED = [row([place], [1]) for place in range(300)] + [row([place], [2]) for place in range(300, 600)]
THRICE = [row([place // 3], [place, 7]) for place in range(60)]


@pytest.mark.parametrize("rows", [pytest.param(SORTED, id="sorted by answer"), pytest.param(THRICE, id="same prompts")])
def test_a_partner_has_another_prompt_and_another_answer(rows: list[dict[str, list[int]]]) -> None:
    found = partners(rows)

    for one, other in zip(map(parts, rows), (parts(rows[place]) for place in found), strict=True):
        assert one[0] != other[0]
        assert one[1] != other[1]
    assert found == partners(rows)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_where_all_prompts_are_the_same_each_row_gets_the_next(number: int) -> None:
    found = partners([row([3], [place]) for place in range(number)])

    assert sorted(found) == list(range(number))
    assert number == 1 or all(place != other for place, other in enumerate(found))


def test_a_mismatched_row_is_a_prompt_with_anothers_answer_cut_at_the_end() -> None:
    one, other = row([1, 2, 3], [4]), row([5], [6, 7, 8])

    assert mismatched(one, other, longest=9) == row([1, 2, 3], [6, 7, 8])
    assert mismatched(one, other, longest=5) == row([1, 2, 3], [6, 7])


def test_a_row_that_fills_a_batch_gets_no_answer() -> None:
    filler = row([0, 0], [])

    assert mismatched(filler, row([5], [6]), longest=9) == filler
