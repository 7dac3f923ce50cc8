"""Preferences: a prompt with a better and a worse answer, as text or as messages.

    {"prompt": "…", "chosen": "…", "rejected": "…"}
    {"prompt": [{"role": "user", …}], "chosen": [{"role": "assistant", …}], "rejected": [{"role": "assistant", …}]}
    {"chosen": [{"role": "user", …}, {"role": "assistant", …}], "rejected": [the same turns, another last one]}

The better side is an example like any other, so that the split, the checks and the held-out questions need to know
nothing of preferences; the worse answer travels with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from finetune_trainer.data.examples import Conversation, Example, PromptCompletion
from finetune_trainer.data.problems import BadExampleError
from finetune_trainer.data.tokenize import Encoded

Converse = Callable[[list[Any]], Conversation]
CheckText = Callable[[object, str], str]


class Encodes(Protocol):
    """What turns examples into tokens."""

    def encode(self, batch: Sequence[tuple[str, Example]]) -> list[Encoded]:
        """Encode examples, each given with its file and line."""


def parse_preference(value: dict[str, Any], *, converse: Converse, text: CheckText) -> Example:
    """Return the better side, the worse answer in it; `converse` and `text` check turns and texts. Raises
    BadExampleError.
    """
    chosen, rejected = (_turns(value[side]) for side in ("chosen", "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _of_text(text(value.get("prompt"), '"prompt"'), text(chosen, '"chosen"'), text(rejected, '"rejected"'))
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise BadExampleError('"chosen" and "rejected" must both be strings, or both lists of {"role", "content"}')
    before = _prompt(value.get("prompt"), chosen)
    return _of_turns(converse(before + chosen), converse(before + rejected))


def encode_sides(encoder: Encodes, batch: Sequence[tuple[str, Example]]) -> list[Encoded]:
    """Encode examples, and their worse answers after the same prompts."""
    return paired(encoder.encode(with_other_sides(batch)), len(batch))


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


def _of_text(prompt: str, chosen: str, rejected: str) -> PromptCompletion:
    if chosen.strip() == rejected.strip():
        raise _equal()
    return PromptCompletion(prompt, chosen, rejected)


def _of_turns(chosen: Conversation, rejected: Conversation) -> Conversation:
    if chosen.turns[:-1] != rejected.turns[:-1]:
        raise BadExampleError('"chosen" and "rejected" differ before their last turn: they must answer the same prompt')
    better, worse = (replace(side.turns[-1], content=side.turns[-1].content.strip()) for side in (chosen, rejected))
    if better == worse:
        raise _equal()
    return replace(chosen, rejected=rejected.turns[-1])


def _turns(value: object) -> object:
    return [value] if isinstance(value, dict) else value


def _prompt(value: object, chosen: list[Any]) -> list[Any]:
    """Return the turns before the sides: none where the sides have them themselves."""
    starts_with_prompt = bool(chosen) and isinstance(chosen[0], dict) and chosen[0].get("role") in ("system", "user")
    if value is None or starts_with_prompt:
        return []
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, list):
        return value
    raise BadExampleError('"prompt" must be a string or a list of {"role", "content"}')


def _equal() -> BadExampleError:
    return BadExampleError('"chosen" and "rejected" are equal: there is nothing to prefer; remove the line')
