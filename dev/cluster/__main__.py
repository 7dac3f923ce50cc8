"""`python -m dev.cluster`: build, up, down and status."""

import argparse
import sys
from pathlib import Path

from dev.cluster import build


def main() -> int:
    """Run one command; errors that a user can act on are shown without a traceback."""
    arguments = _parser().parse_args()
    if arguments.bin_dir:
        build.link_tools(arguments.bin_dir)
    print(build.assets())
    print(build.helm())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="build the control plane and helm into the cache folder")
    command.add_argument("--bin-dir", type=Path, help="also link kubectl and helm into this folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
