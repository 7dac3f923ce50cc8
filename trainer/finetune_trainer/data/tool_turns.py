"""Where the assistant speaks in a conversation with tools: its calls are trained on as the template writes them.

A call's text is the template's own, so a skeleton of contents does not show it. A turn begins where the generation
prompt of the conversation before it ends, and ends with the conversation up to it; where the template writes history
otherwise than the last turn (reasoning that it drops), a rendering with a mark in the turn's content tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from finetune_trainer.data.examples import Conversation, Turn
from finetune_trainer.data.template import ChatTemplate, Span, common_start, mark_of, unusable


def spans_with_tools(template: ChatTemplate, conversation: Conversation, text: str) -> Iterator[Span]:
    """Yield the span of each assistant turn in the rendered text. Raises MODEL_INVALID where calls are left out."""
    done = 0
    for number, turn in enumerate(conversation.turns):
        if turn.role != "assistant":
            continue
        before, after = _around(template, conversation, number)
        start = max(_start(template, conversation, text, number=number, before=before), done)
        done, stop = _end(template, conversation, text, number=number, start=start, after=after)
        if any(call.name not in text[start:done] for call in turn.calls):
            raise unusable("leaves out the calls of tools: use a model whose template knows tools")
        yield Span(start, done, stop)


def _start(template: ChatTemplate, conversation: Conversation, text: str, *, number: int, before: str | None) -> int:
    asked = template.render(conversation.turns[:number], tools=conversation.tools, ask=True)
    if text.startswith(asked):
        return len(asked)
    return common_start(text, asked if before is None else before)


def _end(
    template: ChatTemplate, conversation: Conversation, text: str, *, number: int, start: int, after: str | None
) -> tuple[int, str]:
    """Return where the turn's last token ends, and the token."""
    so_far = template.render(conversation.turns[: number + 1], tools=conversation.tools).rstrip()
    closing = next((one for one in template.tokens.finditer(so_far) if one.end() == len(so_far)), None)
    stem = so_far[: closing.start()] if closing else so_far
    # A turn that is not the last may end with another token than the last one does (gpt-oss).
    if len(stem) > start and text.startswith(stem) and (found := template.tokens.match(text, len(stem))):
        return found.end(), found.group()
    position = start if after is None else max(start, len(text) - common_start(text[::-1], after[::-1]))
    return _next_stop(template, text, position)


def _next_stop(template: ChatTemplate, text: str, position: int) -> tuple[int, str]:
    at = text.find(template.stops[0], position)
    if at < 0:
        raise unusable("ends not every turn of the assistant with the token that ends the last one")
    last = ""
    for stop in template.stops:
        if not text.startswith(stop, at):
            break
        at, last = at + len(stop), stop
    return at, last


def _around(template: ChatTemplate, conversation: Conversation, number: int) -> tuple[str | None, str | None]:
    """Return what the template writes before and after the turn's content; None where it leaves that out."""
    turns, turn = conversation.turns, conversation.turns[number]
    probe: tuple[Turn, ...] = (*turns[:number], replace(turn, content=mark_of(number)), *turns[number + 1 :])
    before, mark, after = template.render(probe, tools=conversation.tools).partition(mark_of(number))
    return (before, after) if mark else (None, None)
