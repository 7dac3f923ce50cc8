"""Answers of the model while it is trained, a JSON line each: a collapsing format shows here before any loss shows it.

While the run goes on they lie in `samples/attempt-<n>.jsonl`: an attempt takes over what those before it kept up to the
step that it goes on from, so that the newest file is the whole story and no step is in it twice. The finished run has
them as `samples.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from finetune_contract.model import Model


class Sample(Model):
    """One answer to one prompt at one step."""

    step: int
    """Optimizer steps done; 0 is the base model."""
    prompt: str | list[dict[str, Any]]
    """A text to go on from, or the turns of a chat."""
    expected: str | None = None
    """What the data answer, where the prompt is a held-out one."""
    answer: str


def turn_text(turn: dict[str, Any]) -> str:
    """Return what a turn of a chat says, for people: its text, and the calls of tools as JSON."""
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in turn.get("tool_calls") or ()]
    return "\n".join(part for part in (turn.get("content") or "", *calls) if part)


def to_lines(samples: Iterable[Sample]) -> str:
    """Return JSON Lines."""
    return "".join(sample.to_json() + "\n" for sample in samples)


def from_lines(text: str) -> list[Sample]:
    """Return the samples of JSON Lines. Raises ValueError."""
    return [Sample.model_validate_json(line) for line in text.splitlines() if line.strip()]
