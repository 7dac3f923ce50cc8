"""Both sides of preferences as tokens: worse answers are encoded after their batch, and put to the better ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetune_trainer.data.examples import Conversation, Example, PromptCompletion
from finetune_trainer.data.tokenize import Encoded


def with_other_sides(batch: Sequence[tuple[str, Example]]) -> list[tuple[str, Example]]:
    """Return the examples, and after them their other sides, where they have some."""
    return [*batch, *((where, other) for where, example in batch if (other := other_side(example)) is not None)]


def paired(encoded: list[Encoded], count: int) -> list[Encoded]:
    """Put what `with_other_sides` appended to `count` examples into those."""
    if len(encoded) == count:
        return encoded
    return [
        replace(one, rejected_ids=other.input_ids, rejected_labels=other.labels)
        for one, other in zip(encoded[:count], encoded[count:], strict=True)
    ]


def other_side(example: Example) -> Example | None:
    """Return the prompt with the worse answer; None where there is none."""
    if isinstance(example, Conversation) and example.rejected is not None:
        return replace(example, turns=(*example.turns[:-1], example.rejected), rejected=None)
    if isinstance(example, PromptCompletion) and example.rejected is not None:
        return PromptCompletion(example.prompt, example.rejected)
    return None
