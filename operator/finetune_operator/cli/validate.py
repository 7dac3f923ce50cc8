"""`finetune validate`: every problem of every manifest at once, before anything is applied."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path

from finetune_operator.api import constants as c
from finetune_operator.cli.check import is_ours, problems_of
from finetune_operator.cli.documents import Document, ReadError, expand, read_documents
from finetune_operator.cli.formats import add_format, is_json, show_json

INVALID = 2
_EPILOG = """\
examples:
  finetune validate job.yaml
  finetune validate jobs/                       every .yaml, .yml and .json in a folder
  kustomize build . | finetune validate -       standard input; other kinds are passed over
  finetune validate --local job.yaml            as `finetune run` would take it: file:// is allowed
  finetune validate --data job.yaml             reads the data, too, with the credentials of your environment
  finetune validate jobs/ -o json               {"valid", "problems"}; what people read is on standard error

exit code: 0 if all are valid, 2 if not
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "validate",
        help="check manifests without a cluster",
        description="Check FineTuneJobs and FineTuneProfiles as the API server would; say all that is wrong.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="manifest, folder, or - for standard input")
    parser.add_argument("--local", action="store_true", help="for `finetune run`: URIs may be file://")
    parser.add_argument("--data", action="store_true", help="read and check the data of the jobs (takes its time)")
    parser.add_argument("--claims", type=Path, metavar="FOLDER", help="folder of PersistentVolumeClaims, for pvc://")
    add_format(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check all files; print a line for each valid object, and one for each problem."""
    if not is_json(arguments):
        return INVALID if _all(arguments) else 0
    with redirect_stdout(sys.stderr):
        problems = _all(arguments)
    show_json({"valid": not problems, "problems": problems})
    return INVALID if problems else 0


def _all(arguments: argparse.Namespace) -> list[str]:
    problems = [line for name in expand(arguments.files) for line in _check(name, arguments)]
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found", file=sys.stderr)
    return problems


def _check(name: str, arguments: argparse.Namespace) -> list[str]:
    try:
        documents = read_documents(name)
    except ReadError as error:
        return [f"{name}: {error}"]
    if not documents:
        return [f"{name}: there is nothing in it"]
    return [line for document in documents for line in _check_document(document, arguments)]


def _check_document(document: Document, arguments: argparse.Namespace) -> list[str]:
    value = document.value
    if not is_ours(value):
        print(f"{document.source}: {value['kind']} passed over: only FineTuneJob and FineTuneProfile are checked")
        return []
    problems = [str(problem) for problem in problems_of(value, in_cluster=not arguments.local)]
    if not problems:
        print(f"{document.source}: {value['kind']} {_name(value)} is valid")
        if arguments.data and value["kind"] == c.JOB_KIND:
            problems += _check_data(document, arguments.claims)
    return [f"{document.source}: {problem}" for problem in problems]


def _check_data(document: Document, claims: Path | None) -> list[str]:
    from finetune_operator.cli.data_check import check_data

    sys.stdout.flush()
    lines, problem = check_data(document.value, claims=claims)
    for line in lines:
        print(f"{document.source}: {line}")
    return [problem] if problem else []


def _name(value: dict[str, dict[str, str]]) -> str:
    metadata = value["metadata"]
    return metadata.get("name") or f"{metadata['generateName']}…"
