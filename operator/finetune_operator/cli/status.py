"""`finetune status`: how a cluster's jobs stand, in words."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from finetune_operator.cli.formats import add_format, is_json, show_json
from finetune_operator.cli.job_lines import describe, table
from finetune_operator.cli.kubectl import KubectlError, add_cluster_arguments, add_job_name, complain, kubectl_of

_EPILOG = """\
examples:
  finetune status                    all jobs of the namespace
  finetune status support-bot        one job: where it stands, why it waits, what went wrong, where its outputs lie
  finetune status support-bot -o json   the object itself, or a list of them

exit code: 0, or 1 if the job is not there or cannot be read
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "status",
        help="show how a cluster's jobs stand",
        description="Show how the FineTuneJobs of a namespace stand, or all about one.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_job_name(parser, nargs="?", help="name of a FineTuneJob (default: all of them)")
    add_format(parser)
    add_cluster_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask and show."""
    kubectl = kubectl_of(arguments)
    try:
        found = [kubectl.job(arguments.name)] if arguments.name else kubectl.jobs()
    except KubectlError as error:
        return complain("status", error)
    if is_json(arguments):
        show_json(found[0] if arguments.name else found)
        return 0
    lines = describe(found[0], datetime.now(UTC)) if arguments.name else table(found, datetime.now(UTC))
    print(*lines, sep="\n")
    return 0
