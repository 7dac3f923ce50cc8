"""`finetune diff`: what a manifest would change of a cluster's job, and what follows: nothing, a run, a refusal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from finetune_contract.nested import leaves
from finetune_operator.api import constants as c
from finetune_operator.cli.documents import ReadError, read_documents
from finetune_operator.cli.kubectl import KubectlError, add_cluster_arguments, complain, kubectl_of

_EPILOG = """\
examples:
  finetune diff job.yaml
  finetune diff job.yaml --namespace team

exit code: 0 if nothing differs, 1 if something does, 2 if it cannot be compared
"""
_FREE = ("lifecycle", "scheduling.priorityClass", "scheduling.queuePriority")


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
    lines = list(difference(there["spec"], job["spec"]))
    print(*(lines or ["nothing differs"]), sep="\n", file=sys.stdout)
    return int(bool(lines))


def difference(there: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    """Yield each field that differs, before and after, and what the API server and the operator make of it."""
    before, after = _fields(there), _fields(wanted)
    changed = sorted(field for field in before.keys() | after.keys() if before.get(field) != after.get(field))
    for field in changed:
        if field in before:
            yield f"- {field}: {json.dumps(before[field])}"
        if field in after:
            yield f"+ {field}: {json.dumps(after[field])}"
    if changed:
        yield _meaning([field for field in changed if not field.startswith(_FREE)], wanted)


def _meaning(fixed: list[str], wanted: dict[str, Any]) -> str:
    if not fixed:
        return "It takes effect as the job goes on: no new run."
    if wanted.get("lifecycle", {}).get("onSpecChange") == "Rerun":
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
