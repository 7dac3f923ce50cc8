"""Reading manifests as kubectl reads them: several documents a file, numbers as in YAML 1.2, no double keys.

PyYAML follows YAML 1.1, where 2e-4 is a string, 1:30 is ninety and 2026-01-01 is a date. kubectl takes the first
for a number and the others for strings, so the loader here does too. Like kubectl it refuses what is small to write
and huge to read: nine levels of ten aliases each are a billion values.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

STDIN = "-"
SUFFIXES = (".yaml", ".yml", ".json")
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_INT = re.compile(r"^[-+]?(0b[01_]+|0o?[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_INT_TAG, _FLOAT_TAG, _TIME_TAG = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))
_EXACT = 2**53
MAX_BYTES = 3 * 2**20
"""Size of a file: the API server takes no larger request."""
MAX_VALUES = 100_000
"""Values of a file, those that aliases stand for counted each time: some thousand jobs."""


class ReadError(Exception):
    """A file that cannot be read as YAML. The message says where and why, without the file's name."""


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document, and where it came from."""

    source: str
    """Its file, with the document's number where the file has several."""
    value: Any


class _Loader(yaml.SafeLoader):
    """Safe, with YAML 1.2 numbers; bounded; a key that is given twice is an error."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._values = 0
        self._behind: dict[str, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count while reading, so that nothing is unfolded before it is known how large it is."""
        event, before = self.peek_event(), self._values  # type: ignore[no-untyped-call]
        line, is_alias = event.start_mark.line + 1, isinstance(event, yaml.AliasEvent)
        if not is_alias:
            self._behind.pop(event.anchor, None)
        node = super().compose_node(parent, index)
        if is_alias and event.anchor not in self._behind:
            raise ReadError(f"line {line}: *{event.anchor} stands inside of what it stands for")
        self._values += self._behind[event.anchor] if is_alias else 1
        if self._values > MAX_VALUES:
            raise ReadError(f"line {line}: more than {MAX_VALUES} values, those that aliases stand for included")
        if event.anchor and not is_alias:
            self._behind[event.anchor] = self._values - before
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ReadError(f"line {line}: a key is a list or a mapping: JSON has text alone")
            if key.tag != "tag:yaml.org,2002:merge" and seen.setdefault(key.value, line) != line:
                raise ReadError(f"line {line}: {key.value!r} is given twice, first in line {seen[key.value]}")
        return super().construct_mapping(node, deep=deep)


def _use_yaml_12_numbers() -> None:
    changed = (_INT_TAG, _FLOAT_TAG, _TIME_TAG)
    _Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in changed]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    # The order decides: what is an integer is not looked at as a float.
    _Loader.add_implicit_resolver(_INT_TAG, _INT, list("-+0123456789"))
    _Loader.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+.0123456789"))


_use_yaml_12_numbers()


def read_documents(name: str) -> list[Document]:
    """Return a file's documents, empty ones left out; `-` is standard input. Raises ReadError."""
    values = [value for value in _load(_text(name)) if value is not None]
    many = len(values) > 1
    return [
        Document(f"{name}, document {number}" if many else name, _as_json(value))
        for number, value in enumerate(values, start=1)
    ]


def expand(names: list[str]) -> Iterator[str]:
    """Yield the files that names stand for: a folder is all manifests in it."""
    for name in names:
        if name != STDIN and Path(name).is_dir():
            yield from sorted(str(path) for path in Path(name).iterdir() if path.suffix in SUFFIXES)
        else:
            yield name


def _text(name: str) -> str:
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1) if name == STDIN else _bytes(Path(name))
        if len(data) > MAX_BYTES:
            raise ReadError(f"larger than {MAX_BYTES >> 20} MiB, which the API server takes at most: split it")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReadError(f"not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror}") from error


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _load(text: str) -> list[Any]:
    try:
        return list(yaml.load_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        raise ReadError(_place_and_problem(error)) from error
    except RecursionError as error:
        raise ReadError("nested too deeply") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # the last two: a tag on a wrong value
        raise ReadError(f"not YAML: {str(error).partition(chr(10))[0]}") from error


def _place_and_problem(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = error.problem or str(error)
    hint = ": indent with spaces, not with tabs" if "'\\t'" in problem else ""
    context = f" {error.context}" if error.context else ""
    return f"{place}not YAML: {problem}{context}{hint}"


def _as_json(value: Any) -> Any:
    """Return what the API server would see: keys are text, absent is absent, 16.0 is 16."""
    if isinstance(value, dict):
        return {_key(key): _as_json(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return value


def _key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)
