"""Values of a record, taken with a complaint that names them if they are not what is wanted."""

from __future__ import annotations

import json
from typing import Any

from finetune_trainer.data.problems import BadExampleError


def text_of(value: object, what: str) -> str:
    """Return a text that is not empty. Raises BadExampleError."""
    if not isinstance(value, str):
        raise BadExampleError(f"{what} is {kind_of(value)}; it must be a string")
    if not value.strip():
        raise BadExampleError(f"{what} is empty; fill it or remove the line")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadExampleError(f"{what} has half of a UTF-16 pair (\\ud800 to \\udfff alone); write the whole character")
    return value


def list_of(value: object, what: str, wanted: str) -> list[Any]:
    """Return a list, given as one or as its JSON (a cell of a table holds only text). Raises BadExampleError."""
    found = value
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            found = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadExampleError(f"{what} is JSON that cannot be read: {error}") from error
    if not isinstance(found, list):
        raise BadExampleError(f"{what} is {kind_of(found)}; it must be a list of {wanted}")
    return found


def not_json(error: json.JSONDecodeError) -> str:
    """Say what is wrong, and in which column; some of the library's words end with "at" already."""
    return f"is not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"


def object_of(value: object, what: str) -> dict[str, Any]:
    """Return an object, given as one or as its JSON. Raises BadExampleError."""
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except json.JSONDecodeError as error:
            raise BadExampleError(f"{what}: {not_json(error)}; correct it") from error
        except RecursionError as error:
            raise BadExampleError(f"{what}: is nested too deeply") from error
    if not isinstance(found, dict):
        raise BadExampleError(f"{what} is {kind_of(found)}; it must be an object")
    return found


def kind_of(value: object) -> str:
    """Return what JSON calls a value, with its article."""
    names = {type(None): "null", list: "a list", dict: "an object", bool: "a boolean", int: "a number"}
    return names.get(type(value), "a number" if isinstance(value, float) else "a string")


def names_of(value: dict[str, Any]) -> str:
    """Return the first fields of a record."""
    return ", ".join(list(value)[:8]) or "none"
