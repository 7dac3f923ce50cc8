"""JSON merge patches (RFC 7386): the least that turns one status into another."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def merge_patch(old: Json, new: Json) -> Json:
    """Return the patch from old to new: changed fields, and null for those that are gone. Lists are whole."""
    patch: Json = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if value == before:
            continue
        nested = isinstance(before, dict) and isinstance(value, dict)
        patch[key] = merge_patch(before, value) if nested else value  # type: ignore[arg-type]
    return patch
