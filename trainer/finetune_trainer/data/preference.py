"""Preferences: a prompt with a better and a worse answer, as text or as messages.

    {"prompt": "…", "chosen": "…", "rejected": "…"}
    {"prompt": [{"role": "user", …}], "chosen": [{"role": "assistant", …}], "rejected": [{"role": "assistant", …}]}
    {"chosen": [{"role": "user", …}, {"role": "assistant", …}], "rejected": [the same turns, another last one]}

The better side is an example like any other, so that the split, the checks and the held-out questions need to know
nothing of preferences; the worse answer travels with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from finetune_trainer.data.examples import Conversation, Example, PromptCompletion
from finetune_trainer.data.problems import BadExampleError

Converse = Callable[[list[Any]], Conversation]
CheckText = Callable[[object, str], str]


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
