"""What is counted about the texts in the first pass: damaged letters, short answers by label, near duplicates."""

from __future__ import annotations

import re
from array import array
from collections import Counter

from finetune_trainer.data.examples import Example, answer_of, texts_of
from finetune_trainer.data.near import NearDuplicates

LABEL = 32
"""Characters of the longest answer that may be a label."""
LABELS = 20
"""More different answers than that are no labels."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_CONTROL_SHARE = 0.05
# UTF-8 that was read as Latin-1 or Windows-1252: é becomes Ã©, an apostrophe â€™.
_MOJIBAKE = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac[\u0080-\u00bf\u0152-\u0178\u02c6-\u2122]")
_REPLACEMENT = "\ufffd"


class Checks:
    """Collects counts in bounded memory."""

    def __init__(self) -> None:
        self.damaged = 0
        """Examples with damaged letters."""
        self.damages: Counter[str] = Counter()
        """The same by kind; an example may have several."""
        self._labels: Counter[str] | None = Counter()
        self._near = NearDuplicates()

    def add(self, example: Example) -> None:
        """Look at one example."""
        found = damages(example)
        self.damaged += bool(found)
        self.damages.update(found)
        self._near.add(example)
        if self._labels is not None:
            self._count_label(answer_of(example))

    @property
    def labels(self) -> dict[str, int]:
        """How often each answer is given, most frequent first, where all of them are few and short; else empty."""
        return dict(self._labels.most_common()) if self._labels else {}

    def near_duplicates(self, wholes: array[int]) -> int:
        """Return the examples that nearly equal an earlier one and do not equal one."""
        return self._near.count(wholes)

    def _count_label(self, answer: str | None) -> None:
        if self._labels is None:
            return
        if answer is not None and len(answer) <= LABEL:
            self._labels[answer.strip()] += 1
        if answer is None or len(answer) > LABEL or len(self._labels) > LABELS:
            self._labels = None


def damages(example: Example) -> set[str]:
    """Return the kinds of damage that the letters of an example show."""
    return {kind for text in texts_of(example) for kind in _of_text(text)}


def _of_text(text: str) -> set[str]:
    found = set()
    if (control := len(_CONTROL.findall(text))) and control > _CONTROL_SHARE * len(text):
        found.add("control characters")
    if not text.isascii():
        if _REPLACEMENT in text:
            found.add("U+FFFD")
        if _MOJIBAKE.search(text):
            found.add("mojibake")
    return found
