"""`finetune`: a job checked, measured and run without a cluster, and followed in one. Only what runs is imported far.

Nothing here imports torch, kopf or a Kubernetes client: `finetune validate` answers in a fraction of a second.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

COMMANDS = {
    **{name: name for name in ("validate", "estimate", "run", "samples", "verify", "status", "watch", "logs", "diff")},
    **dict.fromkeys(("suspend", "resume", "rerun", "cancel"), "control"),
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

`finetune COMMAND --help` says more about each.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    options = _parser(words[0] if words else "").parse_args(words)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # `finetune ... | head`: nobody reads on, which is no error; the interpreter's own flush must not say so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser(wanted: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finetune",
        description="Fine-tune language models: the FineTuneJob manifest, checked, measured and run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # Of the modules only the one that is asked for is imported: `validate` needs a third of what `run` does.
    modules = dict.fromkeys(COMMANDS.values()) if wanted not in COMMANDS else (COMMANDS[wanted],)
    for name in modules:
        import_module(f"finetune_operator.cli.{name}").add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
