"""`finetune logs`: the log of the pod that counts, without looking for its name."""

from __future__ import annotations

import argparse

from finetune_operator.cli.kubectl import Kubectl, KubectlError, add_cluster_arguments, complain, kubectl_of

_EPILOG = """\
examples:
  finetune logs support-bot                      of the newest training pod, or of prepare before there is one
  finetune logs support-bot -f                   as it is written
  finetune logs support-bot --stage prepare

exit code: kubectl's, or 1 if there is no pod
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "logs",
        help="show the log of a cluster's job",
        description="Show the log of a job's newest pod: the trainer's, or prepare's before there is one.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="name of the FineTuneJob")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as it is written")
    parser.add_argument("--stage", choices=("prepare", "train"), help="whose log (default: the newest one's)")
    add_cluster_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Find the pod and show its log."""
    kubectl = kubectl_of(arguments)
    try:
        pod = _newest_pod(kubectl, arguments.name, stage=arguments.stage)
        if pod is None:
            raise KubectlError(f"{arguments.name} has no pod: its status says why (finetune status {arguments.name})")
        follow = ["--follow"] if arguments.follow else []
        return kubectl.stream("logs", pod, "--all-containers", "--ignore-errors", *follow)
    except KubectlError as error:
        return complain("logs", error)


def _newest_pod(kubectl: Kubectl, name: str, *, stage: str | None) -> str | None:
    kubectl.job(name)  # a name that is none is said as that
    stages = [stage] if stage else ["train", "prepare"]
    return next((pods[-1] for each in stages if (pods := kubectl.pods(name, stage=each))), None)
