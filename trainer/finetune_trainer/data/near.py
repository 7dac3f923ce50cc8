"""Near duplicates: examples that say nearly the same as an earlier one, found by MinHash in bounded memory.

MinHash (Broder 1997, "On the resemblance and containment of documents"), as Lee et al. use it on training data (2021,
arXiv:2107.06499): texts that share most of their pieces of 8 bytes have equal minima under most hash functions. Minima
are joined to BANDS keys of ROWS each; two texts with one equal key are near duplicates: with these figures 88 % of the
pairs that share 90 % of their pieces, 13 % of those that share 70 %. Pieces that very many texts have (an instruction
that stands in every prompt) tell nothing, and are not counted.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from finetune_trainer.data.examples import Conversation, Example, normalised, texts_of

PIECE = 8
BANDS, ROWS = 5, 10
LOOKED_AT = 1024
"""Bytes of a text that are looked at, from its start."""
MOST = 1_000_000
"""Examples that are compared: 40 bytes each are kept."""
BATCH = 512
COMMON = 0.2
"""Share of the first batch's texts from which on a piece is common."""
_LAST = np.uint64(2**64 - 1)
_random = np.random.default_rng(20210714)
_FACTORS = _random.integers(2**63, size=(BANDS, ROWS), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_SUMMANDS = _random.integers(2**63, size=(BANDS, ROWS), dtype=np.uint64)


class NearDuplicates:
    """Collects examples, and counts the near duplicates among them."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._keys = array("Q")
        self._common: Any = None

    def add(self, example: Example) -> None:
        """Remember one example."""
        if len(self._waiting) + len(self._keys) // BANDS >= MOST:
            return
        self._waiting.append(_bytes(example))
        if len(self._waiting) == BATCH:
            self._flush()

    def count(self, wholes: array[int]) -> int:
        """Return the examples that nearly equal an earlier one and, by the digests of the wholes, do not equal one."""
        if self._waiting:
            self._flush()
        keys = np.frombuffer(self._keys, dtype=np.uint64).reshape(-1, BANDS)
        near = np.zeros(len(keys), dtype=bool)
        for band in range(BANDS):
            near |= _repeats(keys[:, band])
        return int((near & ~_repeats(np.frombuffer(wholes, dtype=np.uint64)[: len(keys)])).sum())

    def _flush(self) -> None:
        pieces, starts, ends = _pieces(self._waiting)
        if self._common is None:
            self._common = _common(pieces, starts, ends)
        told = _is_told(pieces, self._common)
        # Of every second segment, the rest between two texts, nothing is taken.
        borders = np.stack([starts, ends], axis=1).ravel()
        keys = np.zeros((len(self._waiting), BANDS), dtype=np.uint64)
        for band in range(BANDS):
            for factor, summand in zip(_FACTORS[band], _SUMMANDS[band], strict=True):
                hashes = np.where(told, pieces * factor + summand, _LAST)
                keys[:, band] = _mixed(keys[:, band] + np.minimum.reduceat(hashes, borders)[::2])
        self._keys.frombytes(keys.tobytes())
        self._waiting = []


def _bytes(example: Example) -> bytes:
    """Return an example's text as bytes, of at least one piece; a system prompt is the same for many, and not of it."""
    texts = texts_of(example)
    if isinstance(example, Conversation) and example.system is not None:
        texts = texts[1:]
    return normalised("\n".join(texts)).encode()[:LOOKED_AT].ljust(PIECE, b"\0")


def _pieces(texts: list[bytes]) -> tuple[Any, Any, Any]:
    """Return the pieces that begin at each byte of all texts, and where those of each text begin and end."""
    buffer = np.frombuffer(b"".join(texts) + b"\0" * PIECE, dtype=np.uint8)
    windows: Any = np.ndarray(shape=(len(buffer) - PIECE + 1,), dtype="<u8", buffer=buffer, strides=(1,))
    sizes = np.array([len(text) for text in texts])
    starts = np.cumsum(sizes) - sizes
    return _mixed(windows), starts, starts + sizes - PIECE + 1


def _common(pieces: Any, starts: Any, ends: Any) -> Any:
    """Return the pieces that stand in many texts, sorted."""
    ones = [np.unique(pieces[start:end]) for start, end in zip(starts, ends, strict=True)]
    values, counts = np.unique(np.concatenate(ones), return_counts=True)
    return values[counts > max(COMMON * len(ones), 5)]


def _is_told(pieces: Any, common: Any) -> Any:
    if not len(common):
        return np.ones(len(pieces), dtype=bool)
    return common[np.minimum(np.searchsorted(common, pieces), len(common) - 1)] != pieces


def _mixed(values: Any) -> Any:
    """Return the values well mixed (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _repeats(values: Any) -> Any:
    """Return a mask of the values that stood earlier."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse] != np.arange(len(values))
