"""The field tree of a type, for suggestions: what a misspelt or misplaced field was meant to be."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator
from functools import cache

from finetune_contract.model import Model


def suggest(root: type[Model], path: tuple[str, ...]) -> str:
    """Return "did you mean ...?" for an unknown field at a path below `root`, or a list of what there is."""
    *parent, name = path
    model = _model_at(root, tuple(parent))
    siblings = _wire_names(model) if model else []
    close = difflib.get_close_matches(name, siblings, n=1) or _same_word(name, siblings)
    if close:
        return f"did you mean {close[0]}?"
    elsewhere = next((found for found in _paths(root) if found.rsplit(".", 1)[-1] == name), None)
    if elsewhere:
        return f"it belongs at spec.{elsewhere}"
    return f"there are {', '.join(siblings)}" if siblings else "remove it"


def _same_word(name: str, siblings: list[str]) -> list[str]:
    plain = name.replace("_", "").replace("-", "").lower()
    return [sibling for sibling in siblings if sibling.lower() == plain]


def _model_at(root: type[Model], path: tuple[str, ...]) -> type[Model] | None:
    model: type[Model] | None = root
    for part in path:
        if model is None:
            return None
        if not part.isdigit():  # the index of a list: its element's type is the field's
            model = _children(model).get(part)
    return model


def _wire_names(model: type[Model]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


@cache
def _children(model: type[Model]) -> dict[str, type[Model]]:
    found: dict[str, type[Model]] = {}
    for name, field in model.model_fields.items():
        inner = _inner_model(field.annotation)
        if inner:
            found[field.alias or name] = inner
    return found


def _inner_model(annotation: object) -> type[Model] | None:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    return next((model for part in typing.get_args(annotation) if (model := _inner_model(part))), None)


def _paths(model: type[Model], prefix: str = "") -> Iterator[str]:
    for name in _wire_names(model):
        yield f"{prefix}{name}"
        if name in _children(model):
            yield from _paths(_children(model)[name], f"{prefix}{name}.")
