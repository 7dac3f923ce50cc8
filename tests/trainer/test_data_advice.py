"""Warnings: one for each thing that an expert would change, silence where there is nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_contract.spec import Method
from finetune_trainer.data.advice import Observed, warnings

FINE = Observed(
    examples=1000,
    train_examples=900,
    held_out=100,
    fraction=0.1,
    duplicates=0,
    truncated=0,
    dropped=0,
    longest=400,
    max_sequence_length=512,
    system_prompts=1,
    with_special_tokens=0,
    stop_token=None,
    one_prompt=False,
    method=Method.LORA,
    learning_rate=2e-4,
    epochs=3,
)


def test_good_data_and_settings_are_passed_in_silence() -> None:
    assert warnings(FINE) == ()


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (
            {"examples": 150, "held_out": 15},
            "Only 150 examples: below 200 a model memorises instead of learning; aim for 500 to 2000.",
        ),
        ({"learning_rate": 2e-3}, "learningRate 0.002 is high for LoRA: 1e-05 to 0.0005 is usual."),
        ({"learning_rate": 1e-7}, "learningRate 1e-07 is low for LoRA"),
        ({"method": Method.FULL}, "learningRate 0.0002 is high for Full: 1e-06 to 5e-05 is usual."),
        ({"epochs": 4.5}, "4.5 epochs over 900 examples: small data overfits beyond 3; lower epochs or maxSteps"),
        ({"duplicates": 7}, "7 of 1000 examples equal an earlier one: remove them"),
        ({"truncated": 50, "longest": 900}, "50 of 1000 examples (5%) are cut at maxSequenceLength 512: raise it"),
        ({"dropped": 3}, "3 of 1000 examples were left out: at maxSequenceLength 512 nothing of their answers remains"),
        ({"system_prompts": 4}, "4 different system prompts (none counts as one): use one for all examples"),
        ({"with_special_tokens": 9}, "9 examples contain the chat template's own tokens in their text"),
        ({"stop_token": "<|im_end|>"}, "ends turns with <|im_end|>, at which the model's generation does not stop"),
        ({"left_out": {"system": 8}}, "The chat template leaves out the system prompt of 8 examples: write it into"),
        ({"left_out": {"tools": 8}}, "The chat template leaves out tools or their answers in 8 examples"),
        ({"near_duplicates": 60}, "About 60 of 1000 examples nearly equal an earlier one: vary or remove them"),
        ({"leaked": 5}, "5 of 1000 examples have a prompt that stands in the validation set: they are not trained on"),
        (
            {"damaged": 4, "damages": {"mojibake": 3, "U+FFFD": 2}},
            "4 of 1000 examples have damaged letters (mojibake in 3, U+FFFD in 2): the files were decoded wrongly",
        ),
        ({"labels": {"yes": 950, "no": 50}}, "95% of the answers are 'yes': give the other 1 more examples"),
        ({"one_prompt": True}, "All examples have the same prompt: the held-out part was chosen by whole examples"),
        ({"held_out": 450}, "450 of 1000 examples are held out, since many share a prompt"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:30],
)
def test_what_an_expert_would_change(seen: dict[str, Any], says: str) -> None:
    (warning,) = warnings(replace(FINE, **seen))
    assert says in warning
    assert len(warning) <= 240


@pytest.mark.parametrize(
    "seen",
    [
        {"truncated": 5},
        {"epochs": 9, "train_examples": 5000},
        {"system_prompts": 0},
        {"held_out": 130},
        {"fraction": None, "held_out": 900},
        {"near_duplicates": 40},
        {"labels": {"yes": 700, "no": 300}},
        {"labels": {"yes": 1000}},
        {"labels": {"yes": 40, "no": 2}},
    ],
)
def test_small_matters_are_left_alone(seen: dict[str, Any]) -> None:
    assert warnings(replace(FINE, **seen)) == ()
