"""The train stage as its container runs it: a process of its own, told by its environment, heard by its log."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from finetune_contract import paths
from tests.support.prepared import Case

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


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Read the log up to a line with that text."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    raise AssertionError("".join(seen))
