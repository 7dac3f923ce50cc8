"""The three kinds of example that every format becomes, and what identifies one."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that go through the model's chat template: `messages` and `instruction`."""

    turns: tuple[Turn, ...]

    @property
    def question(self) -> str:
        """The first user turn: conversations that begin alike stay on one side of the split."""
        return next(turn.content for turn in self.turns if turn.role == "user")


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """Plain text and its continuation, joined as they are."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, trained on as a whole."""

    text: str


Example = Conversation | PromptCompletion | Text


def prompt_digest(example: Example) -> int:
    """Return 64 bits of sha256 over the prompt, without regard to case and blanks."""
    match example:
        case Conversation():
            prompt = example.question
        case PromptCompletion():
            prompt = example.prompt
        case Text():
            prompt = example.text
    return _digest(" ".join(unicodedata.normalize("NFKC", prompt).casefold().split()))


def example_digest(example: Example) -> int:
    """Return 64 bits of sha256 over the whole example as it stands."""
    return _digest(repr(example))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
