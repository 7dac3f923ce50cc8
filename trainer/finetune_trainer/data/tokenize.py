"""Examples to token ids and labels.

Labels are made here, so a padding token never decides what is trained on: the collator pads them with -100. A token is
trained on if it shares a character with what the model has to generate.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.exit_codes import ExitCode
from finetune_contract.spec import LossOn
from finetune_trainer.data.examples import Conversation, Example, PromptCompletion
from finetune_trainer.data.formats import CHAT
from finetune_trainer.data.problems import BadExampleError, Problems
from finetune_trainer.data.template import ChatTemplate, Span
from finetune_trainer.errors import TrainerError

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example, uncut."""

    input_ids: list[int]
    labels: list[int]
    left_out: tuple[str, ...] = ()
    """What the chat template left out of it: "system", "tools"."""
    rejected_ids: list[int] = field(default_factory=list)
    """The worse answer after the same prompt, in data of preferences."""
    rejected_labels: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Page:
    """One example as text."""

    text: str
    example: Example
    spans: tuple[Span, ...] = ()
    """Where the assistant speaks, in a conversation."""
    left_out: tuple[str, ...] = ()


class Encoder:
    """Turns examples of one format into ids and labels, a batch at a time on all cores."""

    def __init__(self, tokenizer: Any, *, shape: DatasetFormat, loss: LossOn, chat: bool = False) -> None:
        """`chat` says whether preferences are conversations."""
        if not tokenizer.is_fast:
            raise TrainerError(ExitCode.MODEL_INVALID, "The model folder has no tokenizer.json: save a fast tokenizer.")
        self._loss = loss
        self._template = ChatTemplate(tokenizer) if chat or shape in CHAT else None
        self._backend = tokenizer.backend_tokenizer
        # A tokenizer.json may ask for both; here they would cut and pad silently.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._ids = tokenizer.convert_tokens_to_ids
        self.stop_ids = self._find_stop_ids(tokenizer)
        """What ends an example: one of these should end generation, too."""

    def encode(self, batch: Sequence[tuple[str, Example]]) -> list[Encoded]:
        """Encode examples, each given with its file and line. Raises DATASET_INVALID if the template refuses some."""
        pages = self.render(batch)
        return self.label(pages, self.tokens(pages))

    def question(self, example: Example) -> list[dict[str, Any]] | None:
        """Return the turns that ask for a conversation's last answer; None if they cannot be asked again."""
        if self._template is None or not isinstance(example, Conversation):
            return None
        return self._template.question(example)

    def render(self, batch: Sequence[tuple[str, Example]]) -> list[Page]:
        """Write examples as text, conversations by the template."""
        if self._template is None:
            return [Page(_joined(example), example) for _, example in batch]
        problems, pages = Problems(), []
        for where, example in batch:
            assert isinstance(example, Conversation)  # noqa: S101 - the survey has seen to it
            try:
                rendered = self._template.spans(example)
                pages.append(Page(rendered.text, example, rendered.spans, _left_out(example, rendered.text)))
            except BadExampleError as bad:
                problems.add(where, str(bad))
        problems.raise_if_any()
        return pages

    def tokens(self, pages: Sequence[Page]) -> list[Any]:
        """Tokenise texts, in native code on all cores and without Python's lock."""
        # The template writes the special tokens itself: a second BOS would be wrong.
        encodings: list[Any] = self._backend.encode_batch(
            [page.text for page in pages], add_special_tokens=self._template is None
        )
        return encodings

    def label(self, pages: Sequence[Page], encodings: Sequence[Any]) -> list[Encoded]:
        """Say of each token whether it is trained on."""
        one = self._labelled if self._template else self._continued
        return [one(encoding, page) for encoding, page in zip(encodings, pages, strict=True)]

    def _labelled(self, encoding: Any, page: Page) -> Encoded:
        ids: list[int] = encoding.ids
        if self._loss is LossOn.ALL:
            return Encoded(ids, list(ids), page.left_out)
        labels = [IGNORED] * len(ids)
        for span in page.spans[-1:] if self._loss is LossOn.COMPLETION else page.spans:
            first, last = _tokens_of(encoding, span)
            if ids[last] != self._ids(span.stop):
                raise TrainerError(
                    ExitCode.MODEL_INVALID,
                    "The tokenizer splits the end-of-turn token that its chat template writes, so the model would not "
                    "learn to stop: the token must be an added token of tokenizer.json.",
                )
            labels[first : last + 1] = ids[first : last + 1]
        return Encoded(ids, labels, page.left_out)

    def _continued(self, encoding: Any, page: Page) -> Encoded:
        """Text and prompt with completion, as TRL does it: joined, BOS as the tokenizer adds it, EOS at the end."""
        example = page.example
        ids: list[int] = encoding.ids
        if ids[-1:] != self.stop_ids:
            ids = [*ids, *self.stop_ids]
        labels = list(ids)
        if isinstance(example, PromptCompletion) and self._loss is not LossOn.ALL:
            first, _ = _tokens_of(encoding, Span(len(example.prompt), len(page.text)))
            labels[:first] = [IGNORED] * first
        return Encoded(ids, labels)

    def _find_stop_ids(self, tokenizer: Any) -> list[int]:
        if self._template:
            return [int(number) for number in self._ids(list(self._template.stops))]
        if tokenizer.eos_token_id is None:
            raise TrainerError(
                ExitCode.MODEL_INVALID,
                "The tokenizer has no end-of-text token, so a model trained with it would never stop: set eos_token in "
                "tokenizer_config.json.",
            )
        return [int(tokenizer.eos_token_id)]


def _joined(example: Example) -> str:
    if isinstance(example, PromptCompletion):
        return example.prompt + example.completion
    assert not isinstance(example, Conversation)  # noqa: S101 - those go through the template
    return example.text


def _left_out(conversation: Conversation, text: str) -> tuple[str, ...]:
    """Return what a template has dropped of a conversation, as some do without a word."""
    missing = []
    if conversation.system is not None and conversation.system.strip() not in text:
        missing.append("system")
    tools = [tool["function"]["name"] for tool in json.loads(conversation.tools or "[]")]
    answers = [turn.content.strip() for turn in conversation.turns if turn.role == "tool"]
    if any(wanted not in text for wanted in tools) or any(_is_missing(text, answer) for answer in answers):
        missing.append("tools")
    return tuple(missing)


def _is_missing(text: str, answer: str) -> bool:
    """Whether an answer stands in the text neither as it is nor as JSON writes it."""
    forms = (answer, json.dumps(answer)[1:-1], json.dumps(answer, ensure_ascii=False)[1:-1])
    return not any(form in text for form in forms)


def _tokens_of(encoding: Any, span: Span) -> tuple[int, int]:
    """Return the first and the last token that share a character with the span.

    Characters that a tokenizer drops (blanks, for some) belong to no token: the next one inside counts.
    """
    first = next((t for at in range(span.start, span.end) if (t := encoding.char_to_token(at)) is not None), None)
    last = next(
        (t for at in range(span.end - 1, span.start - 1, -1) if (t := encoding.char_to_token(at)) is not None), None
    )
    if first is None or last is None:
        raise TrainerError(ExitCode.MODEL_INVALID, "The tokenizer gives no tokens for what the model has to generate.")
    return first, last


def padding_token(tokenizer: Any) -> int:
    """Return the id to pad with: the tokenizer's own, else its end-of-text token.

    Equal to a token that is trained on, it would be dangerous where labels are made from ids (the classic model that
    never stops); here labels come from the shards and padding gets -100, so any id in the vocabulary is safe.
    """
    for number in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if number is not None:
            return int(number)
    return 0
