"""Completion, asked for as the shells and kubectl ask for it; the cluster is a kubectl that answers from a table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_operator.cli.completion import SHELLS

BIN = Path(sys.executable).parent
KUBECTL = """#!/bin/sh
case "$*" in
  "--namespace=team get finetunejobs.finetuning.dev "*) printf 'finetunejob.finetuning.dev/%s\\n' bot sorter ;;
  "get finetunejobs.finetuning.dev "*) echo finetunejob.finetuning.dev/mine ;;
  "get namespaces "*) printf 'namespace/%s\\n' default team ;;
  "config get-contexts "*) printf '%s\\n' here there ;;
  *) echo "no answer to $*" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    (tmp_path / "job.yaml").touch()
    return {**os.environ, "PATH": f"{kubectl.parent}:{BIN}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        pytest.param(["s"], ["samples", "status", "suspend"], id="commands"),
        pytest.param(["estimate", "--meth"], ["--method"], id="options"),
        pytest.param(["estimate", "--method", ""], ["LoRA", "QLoRA", "Full"], id="values of an option"),
        pytest.param(["status", "-o", "j"], ["json"], id="formats"),
        pytest.param(["validate", "jo"], ["job.yaml"], id="files"),
        pytest.param(["watch", ""], ["mine"], id="jobs"),
        pytest.param(["watch", "-n", "team", ""], ["bot", "sorter"], id="jobs of a namespace"),
        pytest.param(["cancel", "-n", "team", "so"], ["sorter"], id="jobs that begin so"),
        pytest.param(["logs", "-n", ""], ["default", "team"], id="namespaces"),
        pytest.param(["logs", "--context", "t"], ["there"], id="contexts"),
        pytest.param(["watch", "--context", "gone", ""], [], id="a cluster that does not answer"),
    ],
)
def test_kubectl_is_told_what_the_word_may_become(
    words: list[str], found: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    command = [BIN / "kubectl_complete-finetune", *words]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    *lines, directive = done.stdout.splitlines()
    candidates = [line.partition("\t")[0] for line in lines]
    assert [word for word in candidates if words[-1].startswith("-") or not word.startswith("-")] == found
    assert directive == ":4"


def test_bash_is_told_by_the_script_that_it_is_given(environment: dict[str, str]) -> None:
    script = """
        source <(finetune completion bash)
        COMP_LINE='finetune watch -n team b'; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
        _python_argcomplete finetune
        echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "bot"


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_its_script(shell: str, environment: dict[str, str]) -> None:
    command = [BIN / "finetune", "completion", shell]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    begin = "function __fish_finetune_complete" if shell == "fish" else "#compdef finetune"
    assert done.stdout.strip().startswith(begin)
