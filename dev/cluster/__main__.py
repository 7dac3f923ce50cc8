"""`python -m dev.cluster`: build, up, down and status of a local cluster."""

import argparse
import sys
from pathlib import Path

from dev.cluster import build, daemon
from dev.cluster.parts import StartError
from dev.cluster.state import State
from dev.cluster.toolchain import BuildError

RUN_DIR = Path(".run/cluster")


def main() -> int:
    """Run one command; errors that a user can act on are shown without a traceback."""
    arguments = _parser().parse_args()
    commands = {"build": _build, "up": _up, "down": _down, "status": _status}
    try:
        return commands[arguments.command](arguments)
    except (StartError, BuildError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _build(arguments: argparse.Namespace) -> int:
    print(build.assets())
    print(build.helm())
    if arguments.bin_dir:
        build.link_tools(arguments.bin_dir)
    return 0


def _up(arguments: argparse.Namespace) -> int:
    shape = daemon.Shape(arguments.nodes, arguments.gpus_per_node, arguments.backend)
    if arguments.foreground:
        daemon.run_in_foreground(arguments.run_dir, shape)
    else:
        print(daemon.summary(daemon.up(arguments.run_dir, shape)))
    return 0


def _down(arguments: argparse.Namespace) -> int:
    ended = daemon.down(arguments.run_dir)
    print(f"ended the cluster in {arguments.run_dir}" if ended else f"no cluster runs in {arguments.run_dir}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    state = State.read(arguments.run_dir)
    if state is None or not state.supervisor.is_alive():
        print(f"no cluster runs in {arguments.run_dir}")
        return 1
    for process in (state.supervisor, *state.parts):
        print(f"{process.name:26} {process.pid:>8} {'runs' if process.is_alive() else 'is gone'}")
    print(daemon.summary(state))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="build the control plane and helm into the cache folder")
    command.add_argument("--bin-dir", type=Path, help="also link kubectl and helm into this folder")
    for name, text in {"up": "start a cluster", "down": "end it", "status": "say what runs"}.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("--run-dir", type=Path, default=RUN_DIR, help="all its files (default: %(default)s)")
    _add_shape(commands.choices["up"])
    return parser


def _add_shape(command: argparse.ArgumentParser) -> None:
    command.add_argument("--foreground", action="store_true", help="stay, and end the cluster on Ctrl-C")
    command.add_argument("--nodes", type=int, default=1, help="how many nodes (default: %(default)s)")
    command.add_argument("--gpus-per-node", type=int, default=0, help="pretend GPUs (default: %(default)s)")
    command.add_argument("--backend", choices=["process", "none"], default="process", help="none: no node at all")


if __name__ == "__main__":
    sys.exit(main())
