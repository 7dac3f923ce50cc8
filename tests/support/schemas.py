"""Objects made from a CRD's schema by hypothesis: whatever the API server would store, and what it should refuse."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import strategies as st

from tests.support.manifests import KUSTOMIZE

Schema = dict[str, Any]
_ODD_TEXT = ("", " ", "\u202e\u0000a", "日本語", "🦙" * 40, "a" * 70_000, "../..", "{{ x }}", "s3://", "-1", "true")
_TIMES = ("2026-11-24T12:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-11-24T12:00:00.123456789+14:00")
_NUMBERS = (0, 1, -1, 2**31, 2**63 - 1, -(2**63))
WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(_NUMBERS),
    st.sampled_from((1e-300, 1e300, 0.5, -0.0)),
    st.sampled_from(_ODD_TEXT),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.sampled_from(("", "name", "uri", "é")), st.sampled_from(_ODD_TEXT[:4]), max_size=2),
    st.just([{}] * 2000),
    st.just({str(number): number for number in range(2000)}),
)
"""A value of no particular type."""


def schema_of(kind: str) -> Schema:
    """Return the schema of `finetunejobs` or `finetuneprofiles`, as the shipped CRD has it."""
    crd = yaml.safe_load((KUSTOMIZE / "crd" / f"{kind}.yaml").read_text())
    found: Schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def values(schema: Schema) -> st.SearchStrategy[Any]:
    """Values that the schema's types, enums and required fields allow; patterns and bounds of strings are left out."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        return _objects(schema)
    if kind == "array":
        return st.lists(values(schema["items"]), min_size=schema.get("minItems", 0), max_size=2)
    if kind == "string":
        return st.sampled_from(_TIMES if schema.get("format") == "date-time" else ("", "a", "Ünï", "x" * 300))
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", -(2**63)), schema.get("maximum", 2**63 - 1)
        return st.sampled_from([number for number in (*_NUMBERS, low, high) if low <= number <= high])
    return st.booleans() if kind == "boolean" else WRONG


def _objects(schema: Schema) -> st.SearchStrategy[Any]:
    fields, needed = schema.get("properties", {}), schema.get("required", ())
    if not fields:
        inner = schema.get("additionalProperties")
        one = values(inner) if isinstance(inner, dict) else st.sampled_from(("x", 1, None))
        return st.dictionaries(st.sampled_from(("a", "b")), one, max_size=2)
    return st.fixed_dictionaries(
        {name: values(fields[name]) for name in needed},
        optional={name: values(inner) for name, inner in fields.items() if name not in needed},
    )


def places(schema: Schema) -> list[tuple[str, ...]]:
    """Return the path of every field below a schema."""
    found = []
    for name, inner in schema.get("properties", {}).items():
        below = inner["items"] if inner.get("type") == "array" else inner
        found += [(name,), *((name, *path) for path in places(below))]
    return found
