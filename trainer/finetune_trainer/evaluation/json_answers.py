"""Whether an answer is JSON, and whether it fits a schema: what a program that reads the answers would find.

The whole answer must be JSON by RFC 8259. Around it nothing but blanks is let pass: a program would stumble over a
code fence as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError


def is_json(answer: str) -> bool:
    """Whether the whole answer is JSON."""
    return _parsed(answer) is not None


def schema_check(schema: dict[str, Any]) -> Callable[[str], bool]:
    """Return a function that says whether an answer is JSON that fits a schema. Raises CONFIG_INVALID for a bad schema.

    The draft is that of $schema, else 2020-12. $ref reaches what is in the schema; nothing is fetched.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise _invalid(f"{error.message} at {error.json_path}") from error
    _check_references(schema, kind.META_SCHEMA["$schema"])
    validator = kind(schema, registry=Registry())

    def fits(answer: str) -> bool:
        found = _parsed(answer)
        return found is not None and _is_valid(validator, found[0])

    return fits


def _check_references(schema: dict[str, Any], draft: str) -> None:
    """Follow every $ref now: a wrong one would otherwise be met by an answer, after hours of training."""
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import specification_with

    root: Resource[Any] = specification_with(draft).create_resource(schema)
    todo = [(root, Registry().resolver_with_root(root))]
    while todo:
        resource, resolver = todo.pop()
        reference = resource.contents.get("$ref") if isinstance(resource.contents, dict) else None
        if reference is not None:
            try:
                resolver.lookup(reference)
            except Unresolvable as error:
                raise _invalid(f"$ref {reference} is not in the schema, and nothing is fetched") from error
        todo += [(inside, resolver.in_subresource(inside)) for inside in resource.subresources()]


def _is_valid(validator: Any, value: Any) -> bool:
    from referencing.exceptions import Unresolvable

    try:
        valid: bool = validator.is_valid(value)
    except (RecursionError, Unresolvable):  # it nests deeper than Python follows; a $dynamicRef that leads nowhere
        return False
    return valid


def _parsed(answer: str) -> tuple[Any] | None:
    try:
        return (json.loads(answer, parse_constant=_no_number),)
    except (ValueError, RecursionError):  # "[[[[..." of a model that has lost its way
        return None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _invalid(why: str) -> TrainerError:
    return TrainerError(ExitCode.CONFIG_INVALID, f"evaluation.jsonSchema cannot be used: {why}.")
