"""The three kinds of example that every format becomes, and what identifies one."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: str
    """JSON of an object, its keys in the order of the data: the model learns to write it so."""
    id: str = ""

    def message(self, *, as_text: bool = False) -> dict[str, Any]:
        """Return it as chat templates want it: arguments as an object, for some as text."""
        function = {"name": self.name, "arguments": self.arguments if as_text else json.loads(self.arguments)}
        return {"type": "function", "function": function, **({"id": self.id} if self.id else {})}


@dataclass(frozen=True, slots=True)
class Turn:
    """One message."""

    role: Role
    content: str
    calls: tuple[Call, ...] = ()
    """Tools that the assistant calls in this turn; its content may then be empty."""
    name: str = ""
    """The tool that answers, in a turn of a tool."""
    call_id: str = ""
    """The call that it answers."""

    def message(self, *, as_text: bool = False) -> dict[str, Any]:
        """Return it as chat templates want it; `as_text` is about the arguments of calls."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            found["tool_calls"] = [call.message(as_text=as_text) for call in self.calls]
        if self.name:
            found["name"] = self.name
        if self.call_id:
            found["tool_call_id"] = self.call_id
        return found


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that go through the model's chat template: `messages`, `shareGPT` and `instruction`."""

    turns: tuple[Turn, ...]
    tools: str = ""
    """JSON of the list of tools that the assistant may call; "" where there is none."""
    rejected: Turn | None = None
    """The worse answer in place of the last turn, in data of preferences."""

    @property
    def question(self) -> str:
        """The first user turn: conversations that begin alike stay on one side of the split."""
        return next(turn.content for turn in self.turns if turn.role == "user")

    @property
    def system(self) -> str | None:
        """The system prompt, if there is one."""
        return self.turns[0].content if self.turns[0].role == "system" else None


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """Plain text and its continuation, joined as they are."""

    prompt: str
    completion: str
    rejected: str | None = None
    """The worse completion, in data of preferences."""


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, trained on as a whole."""

    text: str


Example = Conversation | PromptCompletion | Text


def prompt_of(example: Example) -> str:
    """Return what the example asks: the whole of a plain text."""
    match example:
        case Conversation():
            return example.question
        case PromptCompletion():
            return example.prompt
        case Text():
            return example.text


def texts_of(example: Example) -> tuple[str, ...]:
    """Return every text of an example, in order."""
    match example:
        case Conversation():
            return tuple(turn.content for turn in example.turns)
        case PromptCompletion():
            return (example.prompt, example.completion)
        case Text():
            return (example.text,)


def answer_of(example: Example) -> str | None:
    """Return the last answer; None for plain text, and where the last turn calls a tool."""
    match example:
        case Conversation():
            return None if example.turns[-1].calls else example.turns[-1].content
        case PromptCompletion():
            return example.completion
        case Text():
            return None


def normalised(text: str) -> str:
    """Return the text without regard to case, blanks and forms of Unicode: prompts equal so are the same prompt."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_digest(example: Example) -> int:
    """Return 64 bits of sha256 over the normalised prompt."""
    return text_digest(normalised(prompt_of(example)))


def example_digest(example: Example) -> int:
    """Return 64 bits of sha256 over the whole example as it stands."""
    return text_digest(repr(example))


def text_digest(text: str) -> int:
    """Return 64 bits of sha256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
