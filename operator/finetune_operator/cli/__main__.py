"""`finetune`: what a user can do without a cluster. Each command is a module; only the one that runs is imported far.

Nothing here imports torch, kopf or a Kubernetes client: `finetune validate` answers in a fraction of a second.
"""

from __future__ import annotations

import argparse
import os
import sys

from finetune_operator.cli import validate

_EPILOG = """\
examples:
  finetune validate job.yaml         is it right? (no cluster needed)

`finetune COMMAND --help` says more about each.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # `finetune ... | head`: nobody reads on, which is no error; the interpreter's own flush must not say so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finetune",
        description="Fine-tune language models: the FineTuneJob manifest, checked, measured and run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (validate,):
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
