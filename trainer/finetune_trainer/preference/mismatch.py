"""KTO's mismatched rows: every prompt with the better answer of another pair.

How far the model has drifted from the base on answers to something else is what KTO measures gains and losses from
(Ethayarajh et al. 2024, arXiv:2402.01306, section 4). Which answer goes to which prompt is settled by the data, not by
the batches: so the base model is asked once a run, and neither the micro-batch nor the number of ranks matters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from random import Random

from finetune_trainer.data.dataset import IGNORED, Data, Row

OTHER = "other"
"""Column of a row's partner: the place of the pair whose answer its prompt gets."""
TRIES = 100
"""Rows that are looked at for a partner. Where nine of ten rows have the same answer, one of 40,000 finds none."""


def with_partners(data: Data) -> Data:
    """Return the data with each row's partner, in its own part."""
    pairs = zip(data.validation, partners(data.validation), strict=True)
    return replace(
        data,
        train=data.train.add_column(OTHER, partners(data.train)),
        validation=[{**row, OTHER: other} for row, other in pairs],
    )


def partners(rows: Iterable[Row]) -> list[int]:
    """Return the place of each row's partner: the next one in a circle with another prompt and another answer.

    The circle is shuffled, the same way every time: neighbours in the data are alike, all of one label or topic. A row
    that differs from none gets the next.
    """
    keys = [_key(row) for row in rows]
    circle = list(range(len(keys)))
    Random(0).shuffle(circle)  # noqa: S311
    found = [0] * len(keys)
    for position, place in enumerate(circle):
        following = [circle[(position + step) % len(circle)] for step in range(1, min(TRIES, len(circle)) + 1)]
        differing = (other for other in following if _differ(keys[place], keys[other]))
        found[place] = next(differing, following[0])
    return found


def mismatched(row: Row, other: Row, *, longest: int) -> Row:
    """Return a row's prompt with another's better answer, cut at the end. A row that only fills a batch stays one."""
    prompt, answer = _prompt_length(row), _prompt_length(other)
    if prompt == len(row["labels"]):
        return row
    return {
        "input_ids": (row["input_ids"][:prompt] + other["input_ids"][answer:])[:longest],
        "labels": ([IGNORED] * prompt + other["labels"][answer:])[:longest],
    }


def _key(row: Row) -> tuple[int, int]:
    prompt, ids = _prompt_length(row), row["input_ids"]
    return hash(tuple(ids[:prompt])), hash(tuple(ids[prompt:]))


def _differ(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] != other[0] and one[1] != other[1]


def _prompt_length(row: Row) -> int:
    labels = row["labels"]
    return next((place for place, label in enumerate(labels) if label != IGNORED), len(labels))
