"""`finetune suspend`, `resume`, `rerun` and `cancel`: what a user does to a cluster's job, a word each."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from functools import partial
from typing import Any

from finetune_operator.api import constants as c
from finetune_operator.cli.formats import add_format, is_json, show_json
from finetune_operator.cli.kubectl import KubectlError, add_cluster_arguments, add_job_name, complain, kubectl_of

_EPILOG = """\
examples:
  finetune {name} support-bot
  finetune {name} support-bot --namespace team

exit code: 0, or 1 with the server's words if it was not done
"""
_SUSPEND = "end the attempt after a checkpoint and free its GPUs; `resume` goes on from there"
_RESUME = "go on after `suspend`"
_RERUN = "run the same spec again, with outputs of its own"
_CANCEL = "delete the job; checkpoints and outputs stay in storage"

_DONE = {
    "suspend": "suspending; `finetune resume` goes on",
    "resume": "going on",
    "rerun": "a new run begins",
    "cancel": "deleted",
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe all four commands."""
    for name, text in (("suspend", _SUSPEND), ("resume", _RESUME), ("rerun", _RERUN), ("cancel", _CANCEL)):
        parser = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=_EPILOG.format(name=name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_job_name(parser)
        add_format(parser)
        add_cluster_arguments(parser)
        parser.set_defaults(run=partial(_run, name))


def _run(command: str, arguments: argparse.Namespace) -> int:
    kubectl, name = kubectl_of(arguments), arguments.name
    try:
        if command == "cancel":
            kubectl.delete(name)
        else:
            kubectl.patch(name, patch_of(command, datetime.now(UTC)))
    except KubectlError as error:
        return complain(command, error)
    if is_json(arguments):
        show_json({"name": name, "command": command, "message": _DONE[command]})
    else:
        print(f"{name}: {_DONE[command]}")
    return 0


def patch_of(command: str, now: datetime) -> dict[str, Any]:
    """Return what a command changes of a job."""
    if command == "rerun":
        return {"metadata": {"annotations": {c.ANNOTATION_RERUN: now.isoformat(timespec="seconds")}}}
    return {"spec": {"lifecycle": {"suspend": command == "suspend"}}}
