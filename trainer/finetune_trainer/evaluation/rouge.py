"""ROUGE-L (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"): the F1 of the longest common
subsequence of words, without stemming.

For English the same words as Google's rouge-score finds. Letters of other alphabets count here, where that package
drops them, and languages that write no spaces are compared character by character.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NO_SPACES = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Thai, Lao, kana and Chinese characters."""
_WORD = re.compile(f"[{_NO_SPACES}]|[^\\W_{_NO_SPACES}]+")


def rouge_l(answer: str, expected: str) -> float:
    """Return the F1 of the longest common subsequence of words, between 0 and 1; 1 where both texts have no words."""
    given, wanted = words(answer), words(expected)
    if not given or not wanted:
        return float(given == wanted)
    common = longest_common_subsequence(given, wanted)
    return 2 * common / (len(given) + len(wanted))


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return its length: one row of the usual table as the bits of an integer (Hyyro 2004, "Bit-parallel LCS-length
    computation revisited"), so that answers of thousands of words take milliseconds.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    mask = (1 << len(first)) - 1
    row = mask
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & mask
    return len(first) - row.bit_count()
