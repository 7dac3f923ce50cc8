"""Where the assistant speaks in a rendered conversation, for any chat template.

Few templates mark it themselves ({% generation %}), so it is found from outside, by rendering. A conversation whose
contents are replaced by marks gives the template's skeleton: the literal text between the contents. The real rendering
is then compared with the skeleton filled with the real contents; they are equal for nearly all templates and examples.
Where they differ (reasoning that is cut out of earlier turns, text that depends on the content) each assistant turn is
found by rendering the conversation once more with a mark in just its place.

What is trained on begins where the generation prompt ends, for that is what the model will see when it has to answer,
and it ends with the token that ends the turn: a model that never sees its end never stops.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.data.examples import Conversation, Turn
from finetune_trainer.data.problems import BadExampleError
from finetune_trainer.errors import TrainerError
from finetune_trainer.logs import log

_MARK = re.compile(r"Qz(\d{4})zQ")


@dataclass(frozen=True, slots=True)
class Span:
    """Characters that the assistant generates in one turn, its end-of-turn token included."""

    start: int
    end: int
    stop: str = ""
    """The token at its end."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the model sees it."""

    text: str
    spans: tuple[Span, ...]
    """One for each assistant turn, in order."""


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """The literal text of a template around the contents of a sequence of roles."""

    literals: tuple[str, ...]
    """One before each content, one after the last."""
    order: tuple[int, ...]
    """Which turn's content follows each literal."""
    prompts: dict[int, str]
    """For each assistant turn, the end of the literal before it that the generation prompt gives as well."""

    def filled(self, contents: Sequence[str]) -> str:
        pieces = (
            text for literal, turn in zip(self.literals, self.order, strict=False) for text in (literal, contents[turn])
        )
        return "".join(pieces) + self.literals[-1]


class ChatTemplate:
    """Renders conversations with the model's own template."""

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise TrainerError(
                ExitCode.CHAT_TEMPLATE_MISSING,
                "The data is chat and the model's tokenizer has no chat template: use an instruction-tuned model, "
                "or data in the format promptCompletion or text.",
            )
        self._tokenizer = tokenizer
        self._skeletons: dict[tuple[str, ...], _Skeleton | None] = {}
        self.tokens = _added_tokens(tokenizer)
        """Matches any added token of the vocabulary."""
        self.stops = self._find_stops()
        """What ends a conversation's last turn, a token or several (Cohere ends the response, then the turn)."""

    def render(self, turns: Sequence[Turn], *, tools: str = "", ask: bool = False) -> str:
        """Return the text; with `ask`, ending with the generation prompt. Raises BadExampleError if it refuses."""
        try:
            return self._rendered(turns, tools, ask=ask, as_text=False)
        except TypeError as error:
            # Templates of some families (DeepSeek) want the arguments of calls as text.
            if not any(turn.calls for turn in turns):
                raise refused(error) from error
        except Exception as error:
            # A template is the model's code: whatever it raises is how it refuses a conversation.
            raise refused(error) from error
        try:
            return self._rendered(turns, tools, ask=ask, as_text=True)
        except Exception as error:
            raise refused(error) from error

    def question(self, conversation: Conversation) -> list[dict[str, Any]] | None:
        """Return the turns that ask for the last answer, as generation can give them to the template with the
        conversation's tools; None if it refuses them.
        """
        turns = conversation.turns[:-1]
        for as_text in (False, True):
            try:
                self._rendered(turns, conversation.tools, ask=True, as_text=as_text)
            except Exception:
                # Whatever a template raises is how it refuses.
                log.debug("a held-out conversation cannot be asked again", exc_info=True)
            else:
                return [turn.message(as_text=as_text) for turn in turns]
        return None

    def _rendered(self, turns: Sequence[Turn], tools: str, *, ask: bool, as_text: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            [turn.message(as_text=as_text) for turn in turns],
            tools=json.loads(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=ask,
        )
        return text

    def spans(self, conversation: Conversation) -> Rendered:
        """Render a conversation and find what the assistant says in it."""
        turns = conversation.turns
        text = self.render(turns, tools=conversation.tools)
        if conversation.tools or any(turn.calls or turn.role == "tool" for turn in turns):
            from finetune_trainer.data.tool_turns import spans_with_tools

            return Rendered(text, tuple(spans_with_tools(self, conversation, text)))
        skeleton = self._skeleton(turns)
        if skeleton:
            contents = [turn.content for turn in turns]
            for filling in (contents, [content.strip() for content in contents]):
                if skeleton.filled(filling) == text:
                    return Rendered(text, tuple(self._by_skeleton(skeleton, filling, turns)))
        return Rendered(text, tuple(self._by_search(skeleton, text, turns)))

    def _by_skeleton(self, skeleton: _Skeleton, contents: Sequence[str], turns: Sequence[Turn]) -> Iterable[Span]:
        """Add up lengths."""
        position = 0
        for place, (literal, turn) in enumerate(zip(skeleton.literals, skeleton.order, strict=False)):
            position += len(literal)
            start, position = position, position + len(contents[turn])
            if turns[turn].role == "assistant":
                given = skeleton.prompts.get(turn, literal)
                start -= len(literal) - len(given)
                length, stop = self._end(skeleton.literals[place + 1])
                yield Span(start, position + length, stop)

    def _by_search(self, skeleton: _Skeleton | None, text: str, turns: Sequence[Turn]) -> Iterable[Span]:
        """Find each assistant turn by a rendering that differs in just its content."""
        done = 0
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            probe = [*turns[:number], Turn("assistant", mark_of(number)), *turns[number + 1 :]]
            before, mark, after = self.render(probe).partition(mark_of(number))
            end = len(text) - len(after)
            start = min(common_start(text, before), end)
            if not mark or not text.endswith(after) or start < done:
                raise unusable("changes the assistant's turns so much that they cannot be found in its output")
            given = skeleton.prompts.get(number, "") if skeleton else ""
            begin = text.rfind(given, done, start) + len(given) if given in text[done:start] else start
            length, stop = self._end(after)
            done = end + length
            yield Span(begin, done, stop)

    def _skeleton(self, turns: Sequence[Turn]) -> _Skeleton | None:
        roles = tuple(turn.role for turn in turns)
        if roles not in self._skeletons:
            self._skeletons[roles] = self._make_skeleton(turns)
        return self._skeletons[roles]

    def _make_skeleton(self, turns: Sequence[Turn]) -> _Skeleton | None:
        marked = [Turn(turn.role, mark_of(number)) for number, turn in enumerate(turns)]
        parts = _MARK.split(self.render(marked))
        literals, order = tuple(parts[::2]), tuple(int(number) for number in parts[1::2])
        assistants = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
        if any(order.count(number) != 1 for number in assistants):
            return None
        given = {number: self._given(marked, literals, order, number) for number in assistants}
        return _Skeleton(literals, order, given)

    def _given(self, marked: Sequence[Turn], literals: Sequence[str], order: Sequence[int], number: int) -> str:
        """Return how much of the text between the turn before and this one the generation prompt gives."""
        place = order.index(number)
        asked, plain = (_MARK.split(self.render(marked[:number], ask=ask)) for ask in (True, False))
        if place == 0 or len(asked) == 1 or int(asked[-2]) != order[place - 1]:
            return literals[place]
        return literals[place][: _given_length(literals[place], asked=asked[-1], plain=plain[-1])]

    def _find_stops(self) -> tuple[str, ...]:
        try:
            skeleton = self._skeleton([Turn("user", ""), Turn("assistant", "")])
        except BadExampleError as error:
            raise unusable(f"fails on a question and its answer ({error})") from error
        if skeleton is None:
            raise unusable("leaves out what the assistant says, perhaps since it wants no plain text")
        stops: list[str] = []
        rest = skeleton.literals[-1].lstrip()
        while found := self.tokens.match(rest):
            stops.append(found.group())
            rest = rest[found.end() :]
        if not stops:
            raise unusable("ends the assistant's turns without a token to stop at, so the model would never stop")
        return tuple(stops)

    def _end(self, literal: str) -> tuple[int, str]:
        """Return how far a turn's end reaches into the text after its content, blanks before it included.

        Turns before the last may end with another token than the last one does (gpt-oss), but never with none.
        """
        position = len(literal) - len(literal.lstrip())
        last = ""
        for stop in self.stops:
            if not literal.startswith(stop, position):
                break
            position, last = position + len(stop), stop
        if not last:
            found = self.tokens.match(literal, position)
            if not found:
                raise unusable(
                    "ends not every turn of the assistant with a token; set hyperparameters.loss to completion"
                )
            position, last = found.end(), found.group()
        return position, last


def mark_of(number: int) -> str:
    """Return what stands for the content of a turn while the template is looked at."""
    return f"Qz{number:04d}zQ"


def _given_length(literal: str, *, asked: str, plain: str) -> int:
    """Return where in the text before an answer the generation prompt ends.

    The prompt is what asking adds. The history may lack its end (a thought that it opens), hardly its beginning; and
    where asking adds nothing, all that follows the turn before is given.
    """
    prompt = asked.removeprefix(plain) if asked.startswith(plain) else ""
    for length in range(len(prompt), len(prompt) // 2, -1):
        if (at := literal.rfind(prompt[:length])) >= 0:
            return at + length
    return common_start(literal, asked)


def common_start(one: str, other: str) -> int:
    """Return how many characters two texts have in common from the start."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)


def _added_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Match any added token of the vocabulary; those of blanks alone (Gemma has such) end nothing."""
    names = {str(token) for token in tokenizer.added_tokens_decoder.values()} | {tokenizer.eos_token or ""}
    longest_first = sorted((name for name in names if name.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def refused(error: Exception) -> BadExampleError:
    """Return what to say of a conversation that the template raises an error on."""
    return BadExampleError(f"is refused by the model's chat template: {str(error) or type(error).__name__}")


def unusable(what: str) -> TrainerError:
    """Return the error for a template that cannot be trained with."""
    return TrainerError(
        ExitCode.MODEL_INVALID,
        f"The model's chat template {what}: correct the template, or use data in the format promptCompletion.",
    )
