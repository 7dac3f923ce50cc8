"""JSON Lines, and one JSON array: bytes to objects, one at a time."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

from finetune_trainer.data.compression import open_plain
from finetune_trainer.data.problems import BadExampleError, Problems
from finetune_trainer.data.read import UTF8_BOM, DataFile, Record
from finetune_trainer.data.values import not_json

LONGEST = 64 << 20
"""Bytes of one record beyond which a file is taken for damaged: memory is bounded by it."""
PIECE = 1 << 20
_BLANKS = " \t\n\r"


def lines(file: DataFile, problems: Problems) -> Iterator[Record]:
    """Yield the object of each line; empty lines do not count."""
    with open_plain(file.path) as stream:
        number = 0
        while line := stream.readline(LONGEST):
            number += 1
            raw = line.removeprefix(UTF8_BOM) if number == 1 else line
            if not raw.strip():
                continue
            where = f"{file.name} line {number}"
            if len(line) == LONGEST:
                raise BadExampleError(_too_long(), at=f"line {number}")
            try:
                yield Record(where, _object(raw, first=number == 1))
            except BadExampleError as bad:
                problems.add(where, str(bad))


def array_items(file: DataFile, problems: Problems) -> Iterator[Record]:
    """Yield the objects of one JSON array. Raises BadExampleError where the array itself is broken."""
    with open_plain(file.path) as stream:
        for number, value in enumerate(_Array(stream).items(), start=1):
            where = f"{file.name} item {number}"
            if isinstance(value, dict):
                yield Record(where, value)
            else:
                problems.add(where, "is JSON but not an object: write {…}")


def _object(raw: bytes, *, first: bool) -> dict[str, Any]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise BadExampleError(
            f"is not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start}; Latin-1 perhaps): "
            "convert the file (iconv -f LATIN1 -t UTF-8)"
        ) from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadExampleError(_why_not_json(text, error, first=first)) from error
    if not isinstance(value, dict):
        raise BadExampleError("is JSON but not an object: write {…}")
    return value


def _why_not_json(text: str, error: Exception, *, first: bool) -> str:
    if first and text.strip() == "{":
        return (
            "one JSON object must stand on one line, or all in one array; this file spreads it over several (jq -c .)"
        )
    if not text.endswith("\n"):
        return "the last line ends in the middle of its JSON: the file was cut off, upload it again"
    if isinstance(error, json.JSONDecodeError):
        return not_json(error)
    return "is not JSON that can be read: nested too deeply"


def _too_long() -> str:
    return f"is longer than {LONGEST >> 20} MiB: one example must be one line or item"


class _Array:
    """Reads an array from a stream; of its text just the part that is not decoded yet is kept."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._json = json.JSONDecoder()
        self._text, self._at, self._line = "", 0, 1
        self._ended = False

    def items(self) -> Iterator[Any]:
        self._next()  # the bracket, which brought the caller here
        if self._peek() == "]":
            self._next()
        else:
            yield from self._values()
        if rest := self._peek():
            raise self._broken(f"{rest!r} after the array's end")

    def _values(self) -> Iterator[Any]:
        while True:
            self._peek()
            yield self._value()
            mark = self._next()
            if mark == "]":
                return
            if mark != ",":
                raise self._broken(f"{mark!r} where a comma or ] must stand") if mark else self._cut_off()

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._may_go_on(error):
                    self._forget(error.pos)
                    raise self._broken(error.msg) from error
            except RecursionError as error:
                raise self._broken("nested too deeply") from error
            else:
                if end < len(self._text) or self._ended:
                    self._forget(end)
                    return value
            if not self._read():
                raise self._cut_off()

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Whether the text is just not all there yet: the error is at its end, or a string that never ends."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - 12

    def _peek(self) -> str:
        """Return the next character that is not blank; "" at the end of the file."""
        while True:
            at = self._at
            while at < len(self._text) and self._text[at] in _BLANKS:
                at += 1
            self._forget(at)
            if at < len(self._text):
                return self._text[at]
            if not self._read():
                return ""

    def _next(self) -> str:
        found = self._peek()
        self._forget(self._at + len(found))
        return found

    def _forget(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def _read(self) -> bool:
        """Read on, twice as much each time as one value is not complete; False at the end of the file."""
        waiting = len(self._text) - self._at
        if waiting > LONGEST:
            raise BadExampleError(_too_long(), at=f"line {self._line}")
        if self._ended:
            return False
        piece = self._stream.read(max(PIECE, waiting))
        self._ended = not piece
        try:
            text = self._decode(piece, self._ended)
        except UnicodeDecodeError as error:
            raise BadExampleError(
                f"is not UTF-8 after line {self._line + self._text.count(chr(10), self._at)} "
                f"(byte 0x{error.object[error.start]:02x}; Latin-1 perhaps): convert it (iconv -f LATIN1 -t UTF-8)"
            ) from error
        self._text, self._at = self._text[self._at :] + text, 0
        return True

    def _broken(self, what: str) -> BadExampleError:
        return BadExampleError(f"the JSON array is broken: {what}", at=f"line {self._line}")

    def _cut_off(self) -> BadExampleError:
        return BadExampleError(
            "the JSON array does not end: the file was cut off, upload it again", at=f"line {self._line}"
        )
