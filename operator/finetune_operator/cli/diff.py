"""`finetune diff`: what a manifest would change of a cluster's job, and what follows: nothing, a run, a refusal."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from finetune_contract.nested import leaves
from finetune_operator.api import constants as c
from finetune_operator.cli.documents import ReadError, read_documents
from finetune_operator.cli.formats import add_format, is_json, show_json
from finetune_operator.cli.kubectl import KubectlError, add_cluster_arguments, complain, kubectl_of

_EPILOG = """\
examples:
  finetune diff job.yaml
  finetune diff job.yaml --namespace team

exit code: 0 if nothing differs, 1 if something does, 2 if it cannot be compared
"""
_FREE = ("lifecycle", *(f"scheduling.{name}" for name in c.PRIORITIES))


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "diff",
        help="show what a manifest would change of a cluster's job",
        description="Show what a manifest would change of a cluster's job, and what follows from it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="manifest of one FineTuneJob, or - for standard input")
    add_format(parser)
    add_cluster_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare and show."""
    try:
        job = _job_of(arguments.file)
        there = kubectl_of(arguments).job(job["metadata"]["name"])
    except (ReadError, KubectlError, KeyError, TypeError, ValueError) as error:
        complain("diff", error)
        return 2
    if is_json(arguments):
        show_json(difference_of(there["spec"], job["spec"]))
    else:
        print(*(list(difference(there["spec"], job["spec"])) or ["nothing differs"]), sep="\n")
    return int(bool(_changed(there["spec"], job["spec"])))


def difference(there: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    """Yield each field that differs, before and after, and what the API server and the operator make of it."""
    before, after = _fields(there), _fields(wanted)
    changed = _changed(there, wanted)
    for field in changed:
        if field in before:
            yield f"- {field}: {json.dumps(before[field])}"
        if field in after:
            yield f"+ {field}: {json.dumps(after[field])}"
    if changed:
        yield _meaning(_fixed(changed), wanted)


def difference_of(there: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the same for a program: `effect` is None, InPlace, NewRun or Refused."""
    before, after = _fields(there), _fields(wanted)
    changed = _changed(there, wanted)
    changes = [{"field": field, "before": before.get(field), "after": after.get(field)} for field in changed]
    return {"changes": changes, "effect": _effect(_fixed(changed), wanted) if changed else "None"}


def _changed(there: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    before, after = _fields(there), _fields(wanted)
    return sorted(field for field in before.keys() | after.keys() if before.get(field) != after.get(field))


def _fixed(changed: list[str]) -> list[str]:
    return [field for field in changed if not field.startswith(_FREE)]


def _effect(fixed: list[str], wanted: dict[str, Any]) -> str:
    if not fixed:
        return "InPlace"
    if wanted.get("lifecycle", {}).get("onSpecChange") != "Rerun":
        return "Refused"
    return "InPlace" if fixed == ["output.ifExists"] else "NewRun"


def _meaning(fixed: list[str], wanted: dict[str, Any]) -> str:
    effect = _effect(fixed, wanted)
    if effect == "InPlace":
        return "It takes effect as the job goes on: no new run."
    if effect == "NewRun":
        return "It is a new run, with outputs of its own: lifecycle.onSpecChange is Rerun."
    return (
        f"It is refused: {', '.join(fixed)} {'is' if len(fixed) == 1 else 'are'} fixed after creation. Delete the job "
        "and create another, or set lifecycle.onSpecChange: Rerun."
    )


def _fields(spec: dict[str, Any]) -> dict[str, Any]:
    return {".".join(path): value for path, value in leaves(spec)}


def _job_of(file: str) -> dict[str, Any]:
    values = [document.value for document in read_documents(file)]
    jobs = [value for value in values if isinstance(value, dict) and value.get("kind") == c.JOB_KIND]
    if len(jobs) != 1:
        raise ValueError(f"{file} has {len(jobs)} FineTuneJobs: give a file with one")
    found: dict[str, Any] = jobs[0]
    return found
