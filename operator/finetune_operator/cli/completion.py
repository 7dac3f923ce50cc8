"""Completion of commands, options, files and the cluster's names: by argcomplete, which asks the parser itself.

A shell asks `finetune` with _ARGCOMPLETE in its environment. kubectl asks `kubectl_complete-finetune` instead, with
the words so far, and reads a candidate a line and a directive of cobra's: the same question to the same parser.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
from typing import Any

SHELLS = ("bash", "zsh", "fish")
_EPILOG = """\
examples:
  source <(finetune completion bash)                                  # in ~/.bashrc
  source <(finetune completion zsh)                                   # in ~/.zshrc, after compinit
  finetune completion fish > ~/.config/fish/completions/finetune.fish

`kubectl finetune` is completed where kubectl is: it finds `kubectl_complete-finetune`, which is installed beside it.
exit code: 0
"""
_NO_FILES, _NO_SPACE = 4, 2  # cobra's ShellCompDirectives


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "completion",
        help="print what a shell needs to complete",
        description="Print the script that makes a shell complete commands, options, files and names of the cluster.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["finetune"], shell=arguments.shell))
    return 0


def is_asked() -> bool:
    """Whether a shell asks for candidates."""
    return "_ARGCOMPLETE" in os.environ


def answer(parser: argparse.ArgumentParser) -> None:
    """Answer the shell's question and end the process."""
    import argcomplete

    argcomplete.autocomplete(parser, always_complete_options="long")


def kubectl_main() -> int:
    """Answer kubectl: `kubectl_complete-finetune WORD... TO_COMPLETE`."""
    found = candidates(sys.argv[1:])
    folder = any(line.partition("\t")[0].endswith("/") for line in found)
    print(*found, f":{_NO_FILES | (_NO_SPACE if folder else 0)}", sep="\n")
    return 0


def candidates(words: list[str]) -> list[str]:
    """Return what the last word may become, with what it means after a tab."""
    import argcomplete

    from finetune_operator.cli.__main__ import parser_of

    line = " ".join(["finetune", *map(shlex.quote, words[:-1]), *words[-1:]])
    # As fish asks: candidates as they are, a line each, nothing quoted.
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_DFS": "\t", "_ARGCOMPLETE_SHELL": "fish"}
    os.environ.update({**asked, "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SUPPRESS_SPACE": "1"})
    said = io.StringIO()
    parser = parser_of(words)
    argcomplete.autocomplete(parser, always_complete_options="long", exit_method=_stay, output_stream=said)
    return [line.rstrip("\t") for line in said.getvalue().splitlines()]


def _stay(code: int = 0) -> None:
    """Do not end the process."""


def complete_jobs(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Return the names of the namespace's FineTuneJobs; nothing where the cluster does not answer soon."""
    return _names(parsed_args, "finetunejobs.finetuning.dev")


def complete_namespaces(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Return the names of the cluster's namespaces."""
    return _names(parsed_args, "namespaces")


def complete_contexts(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Return the contexts of the kubeconfig."""
    from finetune_operator.cli.kubectl import Kubectl, KubectlError

    try:
        return Kubectl().contexts()
    except KubectlError:
        return []


def _names(parsed_args: argparse.Namespace, resource: str) -> list[str]:
    from finetune_operator.cli.kubectl import KubectlError, kubectl_of

    try:
        return kubectl_of(parsed_args).names(resource)
    except KubectlError:
        return []
