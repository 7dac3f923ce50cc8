"""`python -m dev.demo`: the whole way from a manifest to tuned weights, and the cluster or store to try it yourself."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dev.cluster.parts import StartError
from dev.cluster.toolchain import BuildError
from dev.demo import background
from dev.demo.access import Access
from dev.demo.follow import follow
from dev.demo.running import build_all, running_cluster
from dev.demo.seed import EXAMPLE, NAMESPACE
from dev.demo.show import WrongOutputError, explain_failure, show_results
from dev.demo.timing import Stopwatch
from finetune_operator.cli.storage import StorageError

JOB = "quickstart"
PATIENCE = 1800.0
INTERRUPTED = 130


Ways = tuple[Access, Callable[[], None]]
"""The ways in, and what raises StartError once a process of the cluster has ended."""


class _FailedError(Exception):
    """The demo's job has failed; why has been printed."""


def main() -> int:
    """Run one command; what a user can act on is shown without a traceback."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _run(arguments)
    except (StartError, BuildError, WrongOutputError, StorageError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(error.cmd)}: {(error.stderr or '').strip()}", file=sys.stderr)
        return 1
    except _FailedError:
        return 1
    except KeyboardInterrupt:
        print("interrupted; everything is ended", file=sys.stderr)
        return INTERRUPTED
    return 0


def _run(arguments: argparse.Namespace) -> None:
    match arguments.command:
        case "run":
            demo(arguments.run_dir, keep=arguments.keep)
        case "cluster-up" | "store-up":
            _up(arguments.command.removesuffix("-up"), arguments.run_dir)
        case "cluster-down" | "store-down":
            what = arguments.command.removesuffix("-down")
            print(f"ended the {what}" if background.down(what, arguments.run_dir) else f"no {what} runs")
        case "serve":
            background.serve(arguments.what, arguments.run_dir)


def demo(base: Path, *, keep: bool) -> None:
    """Show the quickstart from its manifest to verified outputs."""
    watch = Stopwatch()
    build_all(watch)
    with _kept(base, watch) if keep else _thrown_away(base, watch) as (access, check):
        _tune(access, watch, check)
    if keep:
        print(f"\nit is still up; to reach it:\n{access.exports()}\nand to end it: make cluster-down")
    else:
        print("\neverything is taken down")


def _tune(access: Access, watch: Stopwatch, check: Callable[[], None]) -> None:
    print(f"\n--- kubectl apply -f {EXAMPLE.relative_to(background.ROOT)} ---")
    print(access.kubectl("apply", "-n", NAMESPACE, "-f", str(EXAMPLE)).rstrip(), flush=True)
    status, follower = follow(access, JOB, namespace=NAMESPACE, patience=PATIENCE, check=check)
    for phase, seconds in follower.durations():
        watch.note(f"job: {phase}", seconds)
    if status["phase"] != "Succeeded":
        print(*explain_failure(status), sep="\n", file=sys.stderr)
        raise _FailedError
    show_results(access, JOB, status, namespace=NAMESPACE)
    print("\n--- how long it took ---")
    print(*watch.table(), sep="\n", flush=True)


@contextmanager
def _thrown_away(base: Path, watch: Stopwatch) -> Iterator[Ways]:
    """Run a cluster of this process's own; its folder stays only if something went wrong."""
    run_dir = base / f"demo-{os.getpid()}"
    try:
        with running_cluster(run_dir, watch) as running:
            yield running.access, running.check()
    except BaseException:
        if run_dir.is_dir():
            print(f"the logs are in {os.path.relpath(run_dir)}", file=sys.stderr)
        raise
    shutil.rmtree(run_dir, ignore_errors=True)


@contextmanager
def _kept(base: Path, watch: Stopwatch) -> Iterator[Ways]:
    """Use the cluster that outlives this process; take it down only if the demo fails."""
    with watch.part("starting control plane, node, object store and operator"):
        access, ran_before = background.up("cluster", base)
    try:
        yield access, background.check("cluster", base)
    except BaseException:
        if not ran_before:
            background.down("cluster", base)
        raise


def _up(what: str, base: Path) -> None:
    with _stdout_on_stderr():  # what is printed on stdout is for `eval`
        build_all(Stopwatch(), control_plane=what == "cluster")
        access, ran_before = background.up(what, base)
    print(f"{what} {'runs already' if ran_before else 'is up'}; to reach it, in your shell:", file=sys.stderr)
    print(access.exports())
    print(f"to end it: make {what}-down", file=sys.stderr)


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    stdout, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = stdout


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.demo", description=__doc__)
    parser.add_argument(
        "--run-dir", type=Path, default=background.RUN_DIR, help="folder for everything that is written (default: .run)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="tune a model on a local cluster, from start to end")
    run.add_argument("--keep", action="store_true", help="leave the cluster up and say how to reach it")
    commands.add_parser("cluster-up", help="start a cluster with the operator, a model and data in the background")
    commands.add_parser("cluster-down", help="end it")
    commands.add_parser("store-up", help="start the object store alone, with a model and data")
    commands.add_parser("store-down", help="end it")
    serve = commands.add_parser("serve", help="(for the two above) start it and stay in the foreground")
    serve.add_argument("what", choices=sorted(background.WHAT))
    return parser


if __name__ == "__main__":
    sys.exit(main())
