"""The part of the API reference about conditions, reasons and failures, from the constants and their docstrings."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from enum import StrEnum

from finetune_contract.exit_codes import FAILURES, FailureClass
from finetune_operator.api.conditions import ConditionType, Phase, Reason


def reason_reference() -> Iterator[str]:
    """Yield the lines of the sections on what a status says."""
    yield "## What the status says\n"
    yield f"`status.phase` is one of {', '.join(f'`{phase}`' for phase in Phase)}; it follows from the conditions.\n"
    yield from _enum("Conditions", "type", ConditionType)
    yield from _enum("Reasons", "reason", Reason)
    yield from _enum("Failure classes", "class", FailureClass)
    yield from _failures()


def _enum(heading: str, column: str, enum: type[StrEnum]) -> Iterator[str]:
    meanings = member_docstrings(enum)
    yield f"### {heading}\n"
    yield f"| {column} | meaning |\n| --- | --- |"
    yield from (f"| `{member}` | {meanings.get(member.name, '')} |" for member in enum)
    yield ""


def _failures() -> Iterator[str]:
    yield "### Failures of the trainer\n"
    yield "As reasons of the `Failed` condition and in `status.lastFailure`; the codes are the container's.\n"
    yield "| exit code | reason | class | meaning |\n| --- | --- | --- | --- |"
    yield from (f"| {row.code.value} | `{row.reason}` | `{row.failure_class}` | {row.meaning} |" for row in FAILURES)
    yield ""


def member_docstrings(enum: type[StrEnum]) -> dict[str, str]:
    """Return the string below each member of an enum, by the member's name."""
    found: dict[str, str] = {}
    body = ast.parse(textwrap.dedent(inspect.getsource(enum))).body[0]
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for member, doc in itertools.pairwise(statements):
        match member, doc:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found
