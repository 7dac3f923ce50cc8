"""Second pass: tokenise every example into the spool of its side of the split, and count on the way."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from finetune_trainer.data.examples import Conversation, Example
from finetune_trainer.data.held_out import HeldOut
from finetune_trainer.data.parts import Part
from finetune_trainer.data.plan import HELD_OUT, LEFT_OUT, Plan
from finetune_trainer.data.shards import Spool
from finetune_trainer.data.survey import examples
from finetune_trainer.data.tokenize import IGNORED, Encoded, Encoder

BATCH = 1000
_SHOWN = 4000

Numbered = tuple[int, str, Example]
"""Number in reading order, file and line, example."""


@dataclass(frozen=True, slots=True)
class Tokenised:
    """All examples as tokens, uncut."""

    train: Path
    validation: Path
    lengths: array[int]
    first_example: str
    with_special_tokens: int
    left_out: Counter[str]
    """Examples of which the chat template leaves something out: "system", "tools"."""


def tokenise(
    parts: Sequence[Part],
    *,
    plan: Plan,
    encoder: Encoder,
    tokenizer: Any,
    held_out: HeldOut,
    folder: Path,
) -> Tokenised:
    """Tokenise all examples that are used."""
    train, validation = Spool(folder / "train.spool"), Spool(folder / "validation.spool")
    lengths, first, special, left_out = array("L"), "", 0, Counter[str]()
    names = tuple(tokenizer.all_special_tokens)
    for batch in _batches(parts, plan):
        encoded = encoder.encode([(where, example) for _, where, example in batch])
        sides: tuple[list[Encoded], list[Encoded]] = ([], [])
        for (number, _, example), one in zip(batch, encoded, strict=True):
            lengths.append(len(one.input_ids))
            special += _mentions(example, names)
            left_out.update(one.left_out)
            if (use := plan.uses[number]) == HELD_OUT:
                sides[1].append(one)
                held_out.add(example, key=plan.keys[number])
            else:
                sides[0].extend([one] * use)
        if not first and sides[0]:
            first = show(sides[0][0], tokenizer)
        train.append(sides[0])
        validation.append(sides[1])
    return Tokenised(train.close(), validation.close(), lengths, first, special, left_out)


def show(example: Encoded, tokenizer: Any) -> str:
    """Return an example's text with what is trained on between ⟦ and ⟧."""
    pieces: list[str] = []
    run: list[int] = []
    for place, token in enumerate(example.input_ids):
        trained = example.labels[place] != IGNORED
        if place and trained != (example.labels[place - 1] != IGNORED):
            pieces.append(_piece(tokenizer, run, trained=not trained))
            run = []
        run.append(token)
    pieces.append(_piece(tokenizer, run, trained=bool(run) and example.labels[-1] != IGNORED))
    text = "".join(pieces)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _piece(tokenizer: Any, run: list[int], *, trained: bool) -> str:
    text: str = tokenizer.decode(run, skip_special_tokens=False)
    return f"⟦{text}⟧" if trained else text


def _batches(parts: Sequence[Part], plan: Plan) -> Iterator[list[Numbered]]:
    numbered = (
        (number, where, one) for number, (where, one) in enumerate(examples(parts)) if plan.uses[number] != LEFT_OUT
    )
    while batch := list(islice(numbered, BATCH)):
        yield batch


def _mentions(example: Example, tokens: Sequence[str]) -> bool:
    """Whether a conversation contains special tokens: it was formatted before, and will be formatted twice."""
    return isinstance(example, Conversation) and any(
        token in turn.content for turn in example.turns for token in tokens
    )
