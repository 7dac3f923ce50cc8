"""What pydantic finds, as lines for a person: the field as it stands in the file, what is wrong, what to write."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from finetune_contract.model import Model
from finetune_operator.cli.fields import suggest

_SHOWN = 60
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
    "model_attributes_type": "a mapping of names to values",
}
_FORMS = {
    "GB": "be a size, as 5GB or 500MB",
    "]*/[": "be a repository, as organisation/name",
    "://": "be a URL, as https://host:port, without credentials or query",
    "a-zA-Z": "be a name of letters, digits, -, _ and .",
    "": "be a name of small letters, digits, - and .",
}
"""By what a field's pattern has in it."""
_QUANTITY = "an amount, as 2, 500m or 16Gi"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing to change in a manifest."""

    field: str
    """Dotted path from the object's root; empty for the object itself."""
    text: str
    """What is wrong and what to do."""

    def __str__(self) -> str:
        return f"{self.field}: {self.text}" if self.field else self.text


def type_problems(model: type[Model], value: Any, *, at: tuple[str, ...]) -> list[Problem]:
    """Return where a JSON value does not fit a type, as strictly as the API server: no text for numbers."""
    try:
        # By alias only: Python's own field names are no fields of the API.
        model.model_validate_json(json.dumps(value), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        found = _lines(model, error, value, at=at)
        return list(dict.fromkeys(found))
    return []


def _lines(model: type[Model], error: ValidationError, value: Any, *, at: tuple[str, ...]) -> Iterator[Problem]:
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]:
            continue  # pydantic counts the entries that are right
        path, quantity = _path(detail, value)
        yield Problem(_dotted((*at, *path)), _text(model, detail, path=path, quantity=quantity))


def _dotted(path: tuple[str, ...]) -> str:
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path).lstrip(".")


def _path(detail: ErrorDetails, value: Any) -> tuple[tuple[str, ...], bool]:
    """Return the location in the file, and whether pydantic went on into the members of a union: a quantity."""
    path: list[str] = []
    for part in detail["loc"]:
        if not isinstance(value, dict | list):
            return tuple(path), True
        path.append(str(part))
        inside = isinstance(value, dict) and part in value
        value = value[part] if inside or isinstance(value, list) else None  # type: ignore[index]
    return tuple(path), False


def _text(model: type[Model], detail: ErrorDetails, *, path: tuple[str, ...], quantity: bool) -> str:
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    shown = f" (is {_show(given)})"
    if quantity:
        return f"must be {_QUANTITY}{shown}"
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return f"unknown field: {suggest(model, path)}"
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}{shown}{_number_hint(kind, given)}"
    if kind in ("enum", "literal_error"):
        return f"must be {_choices(context['expected'])}{shown}{_close(context['expected'], given)}"
    bound = _BOUNDS[kind](context) if kind in _BOUNDS else f"be right: {detail['msg']}"
    return f"must {bound}{'' if kind.endswith(('_short', '_long')) else shown}"


_BOUNDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "greater_than_equal": lambda context: f"be at least {_plain(context['ge'])}",
    "less_than_equal": lambda context: f"be at most {_plain(context['le'])}",
    "greater_than": lambda context: f"be more than {_plain(context['gt'])}",
    "less_than": lambda context: f"be less than {_plain(context['lt'])}",
    "value_error": lambda context: str(context["error"]).removeprefix("must "),  # our own sentences
    "finite_number": lambda _: "be a finite number",
    "string_too_short": lambda _: "not be empty",
    "too_short": lambda _: "not be empty",
    "string_too_long": lambda context: f"have at most {context['max_length']} characters",
    "too_long": lambda context: f"have at most {context['max_length']} entries (has {context['actual_length']})",
    "string_pattern_mismatch": lambda context: next(
        form for mark, form in _FORMS.items() if mark in context["pattern"]
    ),
}


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else str(number)


def _choices(expected: str) -> str:
    return expected.replace("'", "")


def _close(expected: str, given: Any) -> str:
    options = [part for part in expected.split("'") if part.strip(" ,") and part != " or "]
    found = [option for option in options if option.lower() == str(given).lower()]
    found = found or difflib.get_close_matches(str(given), options, n=1)
    return f": did you mean {found[0]}?" if found else ""


def _number_hint(kind: str, given: Any) -> str:
    wants_number = kind in ("int_type", "float_type")
    if wants_number and isinstance(given, str) and given.replace(".", "", 1).replace("e-", "", 1).isdigit():
        return ": remove the quotes"
    if kind == "string_type" and isinstance(given, int | float):
        return f": put it in quotes, {json.dumps(str(given))}"
    return ""


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
