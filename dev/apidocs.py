"""docs/api-reference.md, generated from the CRDs: what is not in the schema is not in the documentation either."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dev.reasondocs import reason_reference

Schema = dict[str, Any]

_SCOPES = {"Namespaced": "namespaced", "Cluster": "cluster-scoped"}

_HEADER = """\
<!-- Generated from finetune_operator.api by `make manifests`. Do not edit. -->
# API reference

What the API server checks, field by field; `kubectl explain ftj.spec --recursive` shows the same.
**Bold** fields are required. What is absent is chosen for you, and `status.resolved` says what was chosen and why.
"""


def api_reference(crds: list[Schema]) -> str:
    """Return the reference of all kinds as Markdown."""
    kinds = (line for crd in crds for line in _kind(crd))
    return "\n".join([_HEADER, *kinds, *reason_reference()])


def _kind(crd: Schema) -> Iterator[str]:
    names, version = crd["spec"]["names"], crd["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    yield f"## {names['kind']}\n"
    yield f"{schema['description']}\n"
    scope, short = _SCOPES[crd["spec"]["scope"]], names["shortNames"][0]
    yield f"`{crd['spec']['group']}/{version['name']}`, {scope}, short name `{short}`\n"
    for part in ("spec", "status"):
        if part in schema["properties"]:
            yield from _object(part, schema["properties"][part], level=3)
    yield from _rules(schema)


def _object(path: str, schema: Schema, *, level: int) -> Iterator[str]:
    """Yield a section for an object, then one for each object below it."""
    yield f"{'#' * min(level, 5)} {path}\n"
    yield f"{schema.get('description', '')}\n"
    yield "| field | type | description |\n| --- | --- | --- |"
    properties = schema.get("properties", {})
    for name, field in properties.items():
        yield _row(name, field, required=name in schema.get("required", ()))
    yield ""
    for name, field in properties.items():
        below, suffix = _below(field)
        if below:
            yield from _object(f"{path}.{name}{suffix}", below, level=level + 1)


def _below(field: Schema) -> tuple[Schema | None, str]:
    """Return the object that a field holds, directly or as its items or values, and how that is written."""
    candidates = ((field, ""), (field.get("items", {}), "[]"), (field.get("additionalProperties", {}), "{}"))
    return next(((schema, suffix) for schema, suffix in candidates if schema.get("properties")), (None, ""))


def _row(name: str, field: Schema, *, required: bool) -> str:
    text = " ".join([_cell(field.get("description", "")), *_bounds(field)])
    return f"| {f'**`{name}`**' if required else f'`{name}`'} | {_type(field)} | {text} |"


def _type(field: Schema) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    if field.get("x-kubernetes-preserve-unknown-fields"):
        return "any object"
    if "items" in field:
        return f"list of {_type(field['items'])}"
    if isinstance(field.get("additionalProperties"), dict):
        return f"map of {_type(field['additionalProperties'])}"
    return str(field.get("format") if field.get("format") == "date-time" else field.get("type", ""))


def _bounds(field: Schema) -> Iterator[str]:
    if "enum" in field:
        yield f"One of {', '.join(f'`{value}`' for value in field['enum'])}."
    if "minimum" in field:
        yield f"{'More than' if field.get('exclusiveMinimum') else 'At least'} {field['minimum']}."
    if "maximum" in field:
        yield f"{'Less than' if field.get('exclusiveMaximum') else 'At most'} {field['maximum']}."
    if "maxItems" in field:
        yield f"At most {field['maxItems']} items."


def _rules(schema: Schema) -> Iterator[str]:
    """Yield the sentences that the API server answers when a rule that crosses fields is broken."""
    found = list(_walk("", schema))
    if found:
        yield "### Rules\n"
        yield "Checked by the API server when a manifest is applied.\n"
        yield "| at | message |\n| --- | --- |"
        yield from (f"| `{path}` | {_cell(message)} |" for path, message in found)
        yield ""


def _walk(path: str, schema: Schema) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield path or "(whole object)", rule["message"]
    for name, field in schema.get("properties", {}).items():
        yield from _walk(f"{path}.{name}".lstrip("."), field)
    if "items" in schema:
        yield from _walk(f"{path}[]", schema["items"])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
