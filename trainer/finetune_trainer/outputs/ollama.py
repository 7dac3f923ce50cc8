"""An Ollama Modelfile with the model's own chat template, as Ollama writes templates: in Go's language.

Jinja cannot be translated to Go in general, but the template of a chat is regular nearly always: every turn is its
content between two fixed texts. Those texts are found by rendering conversations whose contents are known, put
together again, and compared with what the model's own template says about other conversations. What differs is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

Turn = dict[str, str]

_SYSTEM, _ASKED, _ANSWERED, _ASKED_AGAIN = "SYSTEM0", "ASKED1", "ANSWERED2", "ASKED3"
_PROBES: tuple[tuple[str, list[Turn]], ...] = (
    ("a question", [{"role": "user", "content": "How far is it?"}]),
    (
        "several turns",
        [
            {"role": "user", "content": "One {{ more }}"},
            {"role": "assistant", "content": "Two."},
            {"role": "user", "content": "Three?"},
            {"role": "assistant", "content": "Four."},
            {"role": "user", "content": "Five"},
        ],
    ),
    (
        "a system prompt",
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}],
    ),
    (
        "a system prompt and several turns",
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "Bye"},
        ],
    ),
)
_NO_TEMPLATE = "{{ .Prompt }}"
_QUOTES = '"""'


@dataclass(frozen=True, slots=True)
class ChatShape:
    """The fixed texts of a chat template."""

    head: str
    """Before the first turn of a conversation without a system prompt: often a default one."""
    user: str
    """Before a user's content."""
    answer: str
    """Between a user's content and the answer that follows in the history."""
    generate: str
    """The same at the end, where the model goes on."""
    end: str
    """After an answer."""
    system: str | None = None
    """Before a system prompt; None where the template takes none."""
    after_system: str = ""
    folded: bool = False
    """Whether the system prompt stands inside the first user turn, which then begins with `after_system`."""

    def render(self, turns: Sequence[Turn]) -> str:
        """Return a conversation that ends with a user's turn, ready to be answered."""
        text = "" if turns[0]["role"] == "system" else self.head
        joined = False
        for position, turn in enumerate(turns):
            match turn["role"]:
                case "system":
                    text += (self.system or "") + turn["content"] + self.after_system
                    joined = self.folded
                case "user":
                    last = position == len(turns) - 1
                    text += ("" if joined else self.user) + turn["content"] + (self.generate if last else self.answer)
                    joined = False
                case _:
                    text += turn["content"] + self.end
        return text

    def go_template(self) -> str:
        """Return the same for Ollama: Go's text/template over `.Messages`."""
        user, answer = _go(self.user), _go(self.answer)
        if self.folded:
            user = f"{{{{ if $joined }}}}{{{{ $joined = false }}}}{{{{ else }}}}{user}{{{{ end }}}}"
        if self.generate != self.answer:
            last = "eq (len (slice $.Messages $i)) 1"
            answer = f"{{{{ if {last} }}}}{_go(self.generate)}{{{{ else }}}}{answer}{{{{ end }}}}"
        head = f'{{{{ if and (eq $i 0) (ne .Role "system") }}}}{_go(self.head)}{{{{ end }}}}' if self.head else ""
        system = ""
        if self.system is not None:
            mark = "{{ $joined = true }}" if self.folded else ""
            content = f"{_go(self.system)}{{{{ .Content }}}}{_go(self.after_system)}"
            system = f'{{{{ if eq .Role "system" }}}}{content}{mark}{{{{ end }}}}'
        return (
            ("{{ $joined := false }}" if self.folded else "")
            + "{{ range $i, $_ := .Messages }}"
            + head
            + system
            + f'{{{{ if eq .Role "user" }}}}{user}{{{{ .Content }}}}{answer}{{{{ end }}}}'
            + f'{{{{ if eq .Role "assistant" }}}}{{{{ .Content }}}}{_go(self.end)}{{{{ end }}}}'
            + "{{ end }}"
        )


def modelfile(tokenizer: Any, *, weights: str, stop_ids: Sequence[int]) -> tuple[str, list[str]]:
    """Return the Modelfile for a GGUF file beside it, and what a user of Ollama should know."""
    template, warnings = _template(tokenizer) if tokenizer.chat_template else (_NO_TEMPLATE, [])
    lines = [f"FROM ./{weights}"]
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in _stops(tokenizer, stop_ids)]
    return "\n".join(lines) + "\n", warnings


def _template(tokenizer: Any) -> tuple[str | None, list[str]]:
    shape = chat_shape(tokenizer)
    differs = differences(tokenizer, shape) if shape else []
    if shape is None or _PROBES[0][0] in differs or _QUOTES in shape.go_template():
        return None, [
            "gguf/Modelfile has no TEMPLATE, since the model's chat template cannot be written in Ollama's language: "
            "Ollama takes one that it finds similar; look at it with `ollama show --modelfile`."
        ]
    if not differs:
        return shape.go_template(), []
    told = " and ".join(differs)
    return shape.go_template(), [f"gguf/Modelfile: Ollama's prompt differs from the model's own with {told}."]


def chat_shape(tokenizer: Any) -> ChatShape | None:
    """Return the fixed texts of the tokenizer's chat template; None if it is not regular."""
    asked = [{"role": "user", "content": _ASKED}]
    several = [*asked, {"role": "assistant", "content": _ANSWERED}, {"role": "user", "content": _ASKED_AGAIN}]
    first, whole = _rendered(tokenizer, asked), _rendered(tokenizer, several)
    if first is None or whole is None:
        return None
    opening = _split(first, _ASKED)
    parts = _split(whole, _ASKED, _ANSWERED, _ASKED_AGAIN)
    if opening is None or parts is None:
        return None
    before, answer, between, generate = parts
    user = _common_end(before, between, tokenizer)
    shape = ChatShape(
        head=before.removesuffix(user),
        user=user,
        answer=answer,
        generate=generate,
        end=between.removesuffix(user),
    )
    return _with_system(shape, tokenizer)


def differences(tokenizer: Any, shape: ChatShape) -> list[str]:
    """Return the conversations that the shape renders in another way than the model's template."""
    found = []
    for name, turns in _PROBES:
        if turns[0]["role"] == "system" and shape.system is None:
            continue
        if _rendered(tokenizer, turns) != shape.render(turns):
            found.append(name)
    return found


def _with_system(shape: ChatShape, tokenizer: Any) -> ChatShape:
    text = _rendered(tokenizer, [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _ASKED}])
    parts = _split(text, _SYSTEM, _ASKED) if text is not None else None
    if parts is None:
        return shape
    before, between, _ = parts
    apart = between.endswith(shape.user)
    return replace(
        shape, system=before, after_system=between.removesuffix(shape.user) if apart else between, folded=not apart
    )


def _rendered(tokenizer: Any, turns: list[Turn]) -> str | None:
    """Return the conversation without a BOS that the runtime adds by itself; None where the template refuses it."""
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception:  # whatever a template raises
        return None
    bos = tokenizer.bos_token
    return text.removeprefix(bos) if bos and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id] else text


def _split(text: str, *contents: str) -> list[str] | None:
    """Return what stands around the contents; None unless each is there once and in order."""
    parts = []
    for content in contents:
        if text.count(content) != 1:
            return None
        before, _, text = text.partition(content)
        parts.append(before)
    return [*parts, text]


def _common_end(before: str, between: str, tokenizer: Any) -> str:
    """Return what both end with: a user's turn begins with it. It never begins inside a token, nor with the stop
    token of the turn before, which a default system prompt may have as well.
    """
    pairs = zip(reversed(before), reversed(between), strict=False)
    cut = len(between) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    tokens = "|".join(map(re.escape, sorted(tokenizer.get_added_vocab(), key=len, reverse=True)))
    for found in re.finditer(tokens, between) if tokens else ():
        if found.start() < cut < found.end():
            cut = found.end()
    if tokenizer.eos_token and (stop := re.match(rf"{re.escape(tokenizer.eos_token)}\s*", between)):
        cut = max(cut, stop.end())
    return between[cut:]


def _stops(tokenizer: Any, stop_ids: Sequence[int]) -> Iterator[str]:
    ids = [tokenizer.eos_token_id, *stop_ids]
    for token in dict.fromkeys(tokenizer.convert_ids_to_tokens([one for one in ids if one is not None])):
        if token and '"' not in token:
            yield token


def _go(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
