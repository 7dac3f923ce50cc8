"""`finetune watch`: a job as it goes, until it has ended: a live view on a terminal, a line a change elsewhere."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from finetune_operator.api.conditions import ConditionType as T
from finetune_operator.api.conditions import Phase
from finetune_operator.api.parse import parse_job
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.cli.formats import add_format, is_json, show_json_line
from finetune_operator.cli.job_lines import message_of, progress_line
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
  finetune watch support-bot           progress, loss curve, speed and events, until the job has ended
  finetune watch support-bot | tee log
  finetune watch support-bot -o json   the object at each change, a line each

exit code: 0 when the job has succeeded, 1 when it has failed or cannot be read; Ctrl-C leaves the job alone
"""
_MOST_FAILURES = 5


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "watch",
        help="follow a cluster's job until it has ended",
        description="Show a job's progress, loss curve, speed and events until it has ended.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_job_name(parser)
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="between looks (default: 2)")
    add_format(parser)
    add_cluster_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Follow the job; return 0 if it has succeeded."""
    kubectl, name = kubectl_of(arguments), arguments.name
    jobs = looks(kubectl, name, every=arguments.interval)
    try:
        last = _followed(jobs, kubectl, arguments)
    except KubectlError as error:
        return complain("watch", error)
    except KeyboardInterrupt:
        return 130
    return 0 if last == Phase.SUCCEEDED else 1


def _followed(jobs: Iterator[dict[str, Any]], kubectl: Kubectl, arguments: argparse.Namespace) -> Phase | None:
    if is_json(arguments):
        return _objects(jobs)
    return _live(jobs, kubectl, arguments.name) if sys.stdout.isatty() else _lines(jobs)


def looks(kubectl: Kubectl, name: str, *, every: float) -> Iterator[dict[str, Any]]:
    """Yield the job again and again until it has ended. Raises KubectlError if it is not there, or away for long."""
    failures, seen = 0, False
    while True:
        try:
            body = kubectl.job(name)
        except KubectlError:
            failures += 1
            if not seen or failures == _MOST_FAILURES:
                raise
        else:
            failures, seen = 0, True
            yield body
            if parse_job(body).status.phase in (Phase.SUCCEEDED, Phase.FAILED):
                return
        time.sleep(every)


def _live(jobs: Iterator[dict[str, Any]], kubectl: Kubectl, name: str) -> Phase | None:
    from rich.live import Live

    from finetune_operator.cli.watch_view import History, picture

    history, phase = History(), None
    with Live(auto_refresh=False) as live:
        for body in jobs:
            status = parse_job(body).status
            history.see(status)
            live.update(picture(body, _events(kubectl, name), history), refresh=True)
            phase = status.phase
    return phase


def _events(kubectl: Kubectl, name: str) -> list[dict[str, Any]]:
    try:
        return kubectl.events(name)
    except KubectlError:  # a user may read jobs and not events
        return []


def _objects(jobs: Iterator[dict[str, Any]]) -> Phase | None:
    """Print the object at each change, a line each, as `kubectl get --watch -o json` does over several."""
    before, phase = None, None
    for body in jobs:
        if body["metadata"]["resourceVersion"] != before:
            show_json_line(body)
        before, phase = body["metadata"]["resourceVersion"], parse_job(body).status.phase
    return phase


def _lines(jobs: Iterator[dict[str, Any]]) -> Phase | None:
    before, phase = "", None
    for body in jobs:
        status = parse_job(body).status
        line = line_of(status)
        if line != before:
            print(line, flush=True)
        before, phase = line, status.phase
    return phase


def line_of(status: FineTuneJobStatus) -> str:
    """Return where a job stands, in one line."""
    if status.phase == Phase.RUNNING and status.progress:
        return f"Running  {progress_line(status.progress)}"
    why = message_of(status, T.READY)
    return f"{status.phase or Phase.PENDING}" + (f"  {why}" if why else "")
