"""`finetune`: a job checked, measured and run without a cluster, and followed in one. Only what runs is imported far.

Nothing here imports torch, kopf or a Kubernetes client: `finetune validate` answers in a fraction of a second.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

from finetune_operator.cli.completion import answer, is_asked

COMMANDS = {
    **{name: name for name in ("validate", "estimate", "run", "samples", "verify", "status", "watch", "logs", "diff")},
    **dict.fromkeys(("suspend", "resume", "rerun", "cancel"), "control"),
    "completion": "completion",
}
"""The module of each command."""
_EPILOG = """\
examples:
  finetune validate job.yaml                        is it right? (no cluster needed)
  finetune estimate job.yaml --gpu-memory 24Gi      will it fit?
  finetune run job.yaml                             the same job on this machine
  finetune samples job.yaml                         what the model answered, step by step
  finetune verify s3://models/support-bot/run-1     are all outputs there and undamaged?
  finetune watch support-bot                        a job of the cluster, until it has ended

In a cluster: status, watch, logs, diff, suspend, resume, rerun and cancel, also as `kubectl finetune COMMAND`.
With -o json each of them prints JSON for programs. `finetune completion` makes your shell complete all this.

`finetune COMMAND --help` says more about each.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    if is_asked():
        answer(parser_of(os.environ.get("COMP_LINE", "").split()[1:]))
    words = sys.argv[1:] if arguments is None else arguments
    options = parser_of(words).parse_args(words)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # `finetune ... | head`: nobody reads on, which is no error; the interpreter's own flush must not say so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def parser_of(words: list[str]) -> argparse.ArgumentParser:
    """Return the parser for these words: of the commands only the one that they begin with, if it is one."""
    parser = argparse.ArgumentParser(
        prog="finetune",
        description="Fine-tune language models: the FineTuneJob manifest, checked, measured and run.",
        epilog=_EPILOG,
        formatter_class=_Help,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # Of the modules only the one that is asked for is imported: `validate` needs a third of what `run` does.
    known = [COMMANDS[word] for word in words[:1] if word in COMMANDS]
    modules = known or dict.fromkeys(COMMANDS.values())
    for name in modules:
        import_module(f"finetune_operator.cli.{name}").add_parser(commands)
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    """Has room for the longest command on its line: argparse forgets that commands are indented."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = max(map(len, COMMANDS)) + 4


if __name__ == "__main__":
    sys.exit(main())
