"""Second pass: tokenise every example into the spool of its side of the split, and count on the way."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.data.examples import Conversation, Example, texts_of
from finetune_trainer.data.held_out import HeldOut
from finetune_trainer.data.parts import Part
from finetune_trainer.data.plan import HELD_OUT, LEFT_OUT, Plan
from finetune_trainer.data.progress import told
from finetune_trainer.data.shards import Spool
from finetune_trainer.data.sides import paired, with_other_sides
from finetune_trainer.data.survey import examples
from finetune_trainer.data.tokenize import IGNORED, Encoded, Encoder, Page

BATCH = 1000
CHARACTERS = 2 << 20
"""Of a batch; a token that is being counted takes a hundred bytes and more."""
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
    for batch, encoded in _encoded(_batches(parts, plan), encoder):
        sides: tuple[list[Encoded], list[Encoded]] = ([], [])
        for (number, _, example), one in zip(batch, encoded, strict=True):
            lengths.append(max(len(one.input_ids), len(one.rejected_ids)))
            special += _mentions(example, names)
            left_out.update(one.left_out)
            if (use := plan.uses[number]) == HELD_OUT:
                sides[1].append(one)
                held_out.add(example, key=plan.keys[number], question=encoder.question(example))
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


def _encoded(batches: Iterable[list[Numbered]], encoder: Encoder) -> Iterator[tuple[list[Numbered], list[Encoded]]]:
    """Encode batch after batch: while native code tokenises one on all cores, the next is read and rendered here."""
    with ThreadPoolExecutor(1, thread_name_prefix="tokens") as native:
        waiting: deque[tuple[list[Numbered], list[Page], Future[list[Any]]]] = deque()
        for batch in batches:
            pages = encoder.render(with_other_sides([(where, example) for _, where, example in batch]))
            waiting.append((batch, pages, native.submit(encoder.tokens, pages)))
            if len(waiting) > 1:
                done, before, future = waiting.popleft()
                yield done, paired(encoder.label(before, future.result()), len(done))
        for done, before, future in waiting:
            yield done, paired(encoder.label(before, future.result()), len(done))


def _batches(parts: Sequence[Part], plan: Plan) -> Iterator[list[Numbered]]:
    """Yield the used examples, so many at a time that their tokens take bounded memory."""
    batch: list[Numbered] = []
    size = 0
    for number, (where, example) in enumerate(told(examples(parts), "tokens")):
        if plan.uses[number] == LEFT_OUT:
            continue
        batch.append((number, where, example))
        size += sum(map(len, texts_of(example)))
        if len(batch) == BATCH or size > CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _mentions(example: Example, tokens: Sequence[str]) -> bool:
    """Whether a conversation contains special tokens: it was formatted before, and will be formatted twice."""
    return isinstance(example, Conversation) and any(
        token in turn.content for turn in example.turns for token in tokens
    )
