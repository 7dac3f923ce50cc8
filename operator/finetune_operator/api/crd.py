"""The CRDs, generated from the types: `python -m finetune_operator.api.crd DIR` (called by `make manifests`).

Pydantic's JSON schema becomes a structural schema: references inlined, nullable unions and titles removed,
attribute docstrings as descriptions, rules as x-kubernetes-validations. No defaults in spec: what is absent is chosen
by the profile or the operator, and a default in the schema would hide that it was absent.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from finetune_contract.model import Model
from finetune_operator.api import constants
from finetune_operator.api.immutability import immutability_rules
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.profile import FineTuneProfileSpec
from finetune_operator.api.rule import Rule
from finetune_operator.api.rules import JOB_RULES, PROFILE_RULES
from finetune_operator.api.status import FineTuneJobStatus

Schema = dict[str, Any]

_DROPPED = {"title", "default", "additionalProperties", "propertyNames"}
_PRINTER_COLUMNS = (
    ("Model", "string", ".spec.model.uri", 0),
    ("Method", "string", ".spec.method", 0),
    ("Phase", "string", ".status.phase", 0),
    ("Progress", "integer", ".status.progress.percent", 0),
    ("Loss", "number", ".status.progress.loss", 0),
    ("ETA", "string", ".status.progress.eta", 0),
    ("GPUs", "integer", ".status.resolved.gpus", 0),
    ("Restarts", "integer", ".status.restarts.failures", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Queue", "string", ".status.queue.name", 1),
    ("Message", "string", ".status.conditions[?(@.type=='Ready')].message", 1),
)


def job_crd() -> Schema:
    """Return the CustomResourceDefinition of FineTuneJob."""
    spec = structural(FineTuneJobSpec, "What to tune, on what, and where the results go.")
    status = structural(FineTuneJobStatus, "What the operator found and did. Written by the operator only.")
    status["properties"]["conditions"].update({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]})
    root = _root("A fine-tuning of a language model, from data to tuned weights in object storage.", spec)
    # kstatus takes an object without a status for done: Flux's own kinds say in this way that nobody has looked yet.
    root["properties"]["status"] = status | {"default": {"observedGeneration": -1}}
    _attach_rules(root, [*_triples(JOB_RULES), *immutability_rules()])
    return _crd(
        root,
        names={
            "kind": constants.JOB_KIND,
            "listKind": f"{constants.JOB_KIND}List",
            "plural": constants.JOB_PLURAL,
            "singular": "finetunejob",
            "shortNames": ["ftj"],
            "categories": ["ml"],
        },
        scope="Namespaced",
        extra={
            "subresources": {"status": {}},
            "additionalPrinterColumns": [
                {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}
                for name, kind, path, priority in _PRINTER_COLUMNS
            ],
        },
    )


def profile_crd() -> Schema:
    """Return the CustomResourceDefinition of FineTuneProfile."""
    spec = structural(FineTuneProfileSpec, "What the platform team fixes for jobs that use this profile.")
    root = _root("What a platform team fixes for its users, as a StorageClass does for storage.", spec)
    _attach_rules(root, _triples(PROFILE_RULES))
    return _crd(
        root,
        names={
            "kind": constants.PROFILE_KIND,
            "listKind": f"{constants.PROFILE_KIND}List",
            "plural": constants.PROFILE_PLURAL,
            "singular": "finetuneprofile",
            "shortNames": ["ftp"],
            "categories": ["ml"],
        },
        scope="Cluster",
        extra={
            "additionalPrinterColumns": [
                {
                    "name": "Default",
                    "type": "string",
                    "jsonPath": ".metadata.annotations.finetuning\\.dev/is-default-profile",
                },
                {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            ]
        },
    )


def structural(model: type[Model], description: str) -> Schema:
    """Return a model's structural schema, as apiextensions/v1 wants it."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    definitions = schema.pop("$defs", {})
    for cls in _models(model):
        target = schema if cls is model else definitions.get(cls.__name__, {})
        for alias, text in _docstrings(cls).items():
            if alias in target.get("properties", {}):
                target["properties"][alias] = {**target["properties"][alias], "description": text}
    inlined: Schema = _clean(schema, definitions)
    return {"description": description, **{k: v for k, v in inlined.items() if k != "description"}}


def _models(model: type[Model]) -> Iterator[type[Model]]:
    todo: list[type[Model]] = [Model]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        yield cls


def _docstrings(cls: type[Model]) -> dict[str, str]:
    """Return the attribute docstrings of a class and its bases by wire name (PEP 257's "attribute docstring")."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not (isinstance(base, type) and issubclass(base, Model)) or base is Model:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)  # noqa: S101 - a class's source is a class
        for field, doc in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(doc, ast.Expr)
                and isinstance(doc.value, ast.Constant)
            ):
                alias = cls.model_fields[field.target.id].alias or field.target.id
                found[alias] = inspect.cleandoc(str(doc.value.value)).replace("\n", " ")
    return found


def _clean(node: Any, definitions: Schema) -> Any:
    if isinstance(node, list):
        return [_clean(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[1]]
        node = {**target, **{k: v for k, v in node.items() if k != "$ref"}}
        return _clean(node, definitions)
    if "x-kubernetes-int-or-string" in node:  # the one union that a structural schema knows, in exactly this form
        return {k: v for k, v in node.items() if k not in _DROPPED}
    variants = [variant for variant in node.get("anyOf", []) if variant != {"type": "null"}]
    if len(variants) == 1:
        rest = {k: v for k, v in node.items() if k != "anyOf"}
        return _clean({**variants[0], **rest}, definitions)
    return _keywords(node, definitions)


def _keywords(node: Schema, definitions: Schema) -> Schema:
    clean: Schema = {}
    for key, value in node.items():
        if key == "properties":
            clean[key] = {name: _clean(schema, definitions) for name, schema in value.items()}
        elif key == "additionalProperties" and isinstance(value, dict):
            clean[key] = _clean(value, definitions)
        elif key == "const":
            clean["enum"] = [value]
        elif key in ("exclusiveMinimum", "exclusiveMaximum"):  # OpenAPI 3.0: a bound and a flag
            clean[key.replace("exclusiveM", "m")] = value
            clean[key] = True
        elif key not in _DROPPED:
            clean[key] = _clean(value, definitions)
    if clean.get("type") == "integer":
        clean.setdefault("format", "int64")
    return clean


def _root(description: str, spec: Schema) -> Schema:
    return {
        "description": description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "finetuning.dev/v1alpha1."},
            "kind": {"type": "string", "description": "The kind of this object."},
            "metadata": {"type": "object"},
            "spec": spec,
        },
    }


def _triples(rules: tuple[Rule, ...]) -> list[tuple[tuple[str, ...], str, str]]:
    return [(rule.at, rule.cel, rule.message) for rule in rules]


def _attach_rules(root: Schema, rules: list[tuple[tuple[str, ...], str, str]]) -> None:
    for at, cel, message in rules:
        node = root
        for name in at:
            node = node["items"] if name == "[]" else node["properties"][name]
        node.setdefault("x-kubernetes-validations", []).append({"rule": cel, "message": message})


def _crd(root: Schema, *, names: Schema, scope: str, extra: Schema) -> Schema:
    version = {
        "name": constants.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": root},
        **extra,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{constants.GROUP}"},
        "spec": {"group": constants.GROUP, "names": names, "scope": scope, "versions": [version]},
    }


def render(crd: Schema) -> str:
    """Return a CRD as YAML, with the note that it is generated."""
    body = yaml.safe_dump(crd, sort_keys=False, width=120, allow_unicode=True)
    return f"# Generated from finetune_operator.api by `make manifests`. Do not edit.\n{body}"


def main(folders: list[str]) -> None:
    """Write both CRDs into each folder."""
    for folder in map(Path, folders):
        folder.mkdir(parents=True, exist_ok=True)
        for crd in (job_crd(), profile_crd()):
            (folder / f"{crd['spec']['names']['plural']}.yaml").write_text(render(crd))


if __name__ == "__main__":
    main(sys.argv[1:])
