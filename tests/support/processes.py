"""The train stage as its container runs it: a process of its own, told by its environment, heard by its log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import TerminationMessage
from finetune_contract.run_config import Device
from tests.support.prepared import Case
from tests.support.training import Outcome

COMMAND = (sys.executable, "-m", "finetune_trainer", "train")


def container_environment(case: Case, **variables: str) -> dict[str, str]:
    """Write the case's configuration, and return the environment that points at it."""
    case.env.config.write_text(case.config.to_json())
    places = {
        paths.ENV_CONFIG: str(case.env.config),
        paths.ENV_WORK: str(case.env.work),
        paths.ENV_CACHE: str(case.env.cache),
        paths.ENV_TERMINATION_LOG: str(case.env.termination_log),
    }
    return {**os.environ, **places, **variables}


@contextmanager
def trainer(case: Case, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Run the train stage; its log is `stderr`. Whatever is left of it is ended."""
    environment = container_environment(case, OMP_NUM_THREADS="1", **variables)
    process = subprocess.Popen(COMMAND, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def with_processes(case: Case, number: int) -> Case:
    """Return the case as so many processes train it."""
    return Case(case.config.model_copy(update={"device": Device(processes=number)}), case.env, case.run)


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end; return exit code and log."""
    _, log = process.communicate(timeout=240)
    return process.returncode, log


def last_word(case: Case) -> TerminationMessage:
    """Return the termination message."""
    message = TerminationMessage.decode(case.env.termination_log.read_text())
    assert message is not None
    return message


def outcome_of(case: Case) -> Outcome:
    """Return what a run that has completed was."""
    result = last_word(case).trained
    assert result is not None
    return Outcome(result=result, run=case.run)


def completed(case: Case, **variables: str) -> Outcome:
    """Run the train stage to its end."""
    with trainer(case, **variables) as process:
        code, log = finished(process)
    assert code == 0, log
    return outcome_of(case)


def on_the_fast_path(folder: Path) -> dict[str, str]:
    """Return variables with which processes take it on a CPU."""
    (folder / "sitecustomize.py").write_text(
        "from finetune_trainer.fast import choice\n\nchoice._worth_it = lambda: True\n"
    )
    return {"PYTHONPATH": str(folder)}


def preempted(case: Case, *, once: str) -> None:
    """Drain the node of one of two pods once a line is in the log: the others learn it from the first process."""
    with trainer(case) as process:
        read_until(process, once)
        os.kill(children(process)[1], signal.SIGTERM)
        code, log = finished(process)
    assert code == last_word(case).exit_code == ExitCode.PREEMPTED, log


def children(process: subprocess.Popen[str]) -> list[int]:
    """Return the ranks' process ids, in order."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Read the log up to a line with that text."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    raise AssertionError("".join(seen))
