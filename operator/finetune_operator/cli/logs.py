"""`finetune logs`: the log of the pod that counts, without looking for its name."""

from __future__ import annotations

import argparse
import re

from finetune_operator.cli.formats import add_format, is_json, show_json_line
from finetune_operator.cli.kubectl import (
    Kubectl,
    KubectlError,
    add_cluster_arguments,
    add_job_name,
    complain,
    kubectl_of,
)

_EPILOG = """\
examples:
  finetune logs support-bot                      of the newest training pod, or of prepare before there is one
  finetune logs support-bot -f                   as it is written
  finetune logs support-bot --stage prepare
  finetune logs support-bot -o json              {"pod", "container", "line"} for each line

exit code: kubectl's, or 1 if there is no pod
"""

_PREFIXED = re.compile(r"^\[pod/(?P<pod>[^/]+)/(?P<container>[^\]]+)\] ?(?P<line>.*)$")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "logs",
        help="show the log of a cluster's job",
        description="Show the log of a job's newest pod: the trainer's, or prepare's before there is one.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_job_name(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on as it is written")
    parser.add_argument("--stage", choices=("prepare", "train"), help="whose log (default: the newest one's)")
    add_format(parser)
    add_cluster_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Find the pod and show its log."""
    kubectl = kubectl_of(arguments)
    try:
        pod = _newest_pod(kubectl, arguments.name, stage=arguments.stage)
        if pod is None:
            raise KubectlError(f"{arguments.name} has no pod: its status says why (finetune status {arguments.name})")
        words = ["logs", pod, "--all-containers", "--ignore-errors", *(["--follow"] if arguments.follow else [])]
        if not is_json(arguments):
            return kubectl.stream(*words)
        return kubectl.lines(*words, "--prefix", each=_show_line)
    except KubectlError as error:
        return complain("logs", error)


def _show_line(line: str) -> None:
    found = _PREFIXED.match(line)
    if found:
        show_json_line({"pod": found["pod"], "container": found["container"], "line": found["line"]})


def _newest_pod(kubectl: Kubectl, name: str, *, stage: str | None) -> str | None:
    kubectl.job(name)  # a name that is none is said as that
    stages = [stage] if stage else ["train", "prepare"]
    return next((pods[-1] for each in stages if (pods := kubectl.pods(name, stage=each))), None)
