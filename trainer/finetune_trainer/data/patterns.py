"""Patterns in URIs: * and [a-z] stay within a folder, ** goes through any."""

from __future__ import annotations

import re


def has_wildcard(text: str) -> bool:
    """Whether a path is a pattern."""
    return bool(set("*[") & set(text))


def split_pattern(uri: str) -> tuple[str, str]:
    """Split a URI before its first part with a wildcard: what to list, and what to match below it."""
    scheme, _, rest = uri.partition("://")
    parts = rest.split("/")
    first = next((number for number, part in enumerate(parts) if has_wildcard(part)), len(parts))
    return f"{scheme}://{'/'.join(parts[:first])}", "/".join(parts[first:])


def matches(pattern: str, name: str) -> bool:
    """Whether a path matches a pattern."""
    return re.fullmatch("".join(map(_as_regex, re.findall(r"\*\*/|\*\*|\*|\[[^]]+\]|.", pattern))), name) is not None


def _as_regex(piece: str) -> str:
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    if piece.startswith("[") and len(piece) > 1:
        return "[" + ("^" if piece[1] in "!^" else "") + re.escape(piece[1:-1].lstrip("!^")).replace(r"\-", "-") + "]"
    return known.get(piece) or re.escape(piece)
