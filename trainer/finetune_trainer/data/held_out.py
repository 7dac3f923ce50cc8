"""Held-out examples for generation: the prompt as the model gets it, and the answer that the data gives.

Those with the smallest keys of the split are kept, so that they are the same ones when the data grows.
"""

from __future__ import annotations

import heapq
import json
from pathlib import Path
from typing import Any

from finetune_trainer.data.examples import Conversation, Example, PromptCompletion


class HeldOut:
    """Keeps the first examples in the order of their keys."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, int, str]] = []  # keys negated: the largest is on top
        self._seen = 0

    def add(self, example: Example, *, key: int, question: list[dict[str, Any]] | None = None) -> None:
        """Offer one held-out example, a conversation with the turns that ask for its answer.

        Plain text has no answer, a call of a tool is none, and some conversations cannot be asked again: they are
        passed over.
        """
        record = _record(example, question)
        if record is None:
            return
        self._seen += 1
        entry = (-key, -self._seen, json.dumps(record, ensure_ascii=False))
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def write(self, path: Path) -> None:
        """Write JSON Lines."""
        lines = (f"{record}\n" for _, _, record in sorted(self._heap, reverse=True))
        path.write_text("".join(lines), encoding="utf-8")


def _record(example: Example, question: list[dict[str, Any]] | None) -> dict[str, object] | None:
    match example:
        case Conversation(turns, tools) if question and not turns[-1].calls:
            asked = {"messages": question, "answer": turns[-1].content}
            return {**asked, **({"tools": json.loads(tools)} if tools else {})}
        case PromptCompletion(prompt, completion):
            return {"prompt": prompt, "answer": completion}
        case _:
            return None
