"""The held-out part: equal prompts on one side, old examples never move, neither side is ever empty."""

from __future__ import annotations

import pytest

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.data.examples import PromptCompletion, example_digest, prompt_digest
from finetune_trainer.data.split import Split, choose_split
from finetune_trainer.errors import TrainerError


def split(examples: list[PromptCompletion], fraction: float = 0.1) -> Split:
    return choose_split([*map(prompt_digest, examples)], [*map(example_digest, examples)], fraction)


def held_out(examples: list[PromptCompletion], fraction: float = 0.1) -> set[PromptCompletion]:
    chosen = split(examples, fraction)
    return {example for number, example in enumerate(examples) if chosen.is_held_out(number)}


def many(count: int) -> list[PromptCompletion]:
    return [PromptCompletion(f"question {number}", f"answer {number}") for number in range(count)]


def test_the_fraction_is_met() -> None:
    assert 150 < split(many(2000)).held_out < 250
    assert 900 < split(many(2000), 0.5).held_out < 1100


def test_equal_prompts_stay_together_whatever_their_case_and_blanks() -> None:
    examples = many(300)
    again = [PromptCompletion(f"  {one.prompt.upper()}\n", "another answer") for one in examples]
    chosen = split(examples + again)
    assert all(chosen.is_held_out(number) == chosen.is_held_out(number + 300) for number in range(300))


def test_adding_data_moves_no_old_example_nor_does_its_order() -> None:
    examples = many(400)
    shuffled = sorted(many(1200), key=example_digest)
    assert held_out(shuffled) & set(examples) == held_out(examples)


@pytest.mark.parametrize("count", [2, 3, 5, 9])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.999])
def test_small_data_has_at_least_one_example_on_each_side(count: int, fraction: float) -> None:
    chosen = split(many(count), fraction)
    assert 0 < chosen.held_out < count
    assert split(many(count), fraction) == chosen


def test_where_all_prompts_are_equal_whole_examples_are_told_apart() -> None:
    chosen = split([PromptCompletion("Write a haiku.", f"haiku {number}") for number in range(500)])
    assert chosen.by_whole
    assert 25 < chosen.held_out < 80


@pytest.mark.parametrize(("count", "says"), [(1, "has 1 example, and no other"), (4, "has 4 examples, all equal")])
def test_data_that_cannot_be_split_is_too_small(count: int, says: str) -> None:
    with pytest.raises(TrainerError, match=says) as caught:
        split([PromptCompletion("a", "b")] * count)
    assert caught.value.code == ExitCode.DATASET_TOO_SMALL
