"""A rank that is killed in the middle: how soon its attempt ends, with which word, and that the next one goes on.

A tiny model is trained without end by the train stage as its container runs it, one process a GPU; once a checkpoint is
stored, the last process is killed. The next attempt trains to an end some steps after the checkpoint.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from finetune_contract import paths
from finetune_contract.run_config import Device
from tests.support.prepared import Case
from tests.support.processes import children, finished, last_word, read_until, trainer
from tests.support.training import make_case

LIMIT = 60.0
"""Seconds within which an attempt that has lost a process must have ended."""
_STORED = 4
_SPEC: dict[str, Any] = {"evaluation": {"metrics": ["exactMatch"], "maxNewTokens": 3}}


def kill_a_rank(folder: Path, *, gpus: int, ranks: int) -> dict[str, Any]:
    """Return what was seen; `ranks` processes, on as many GPUs or on a CPU."""
    device = Device(gpus=gpus) if gpus else Device(processes=ranks)
    steps: dict[str, Any] = {"micro_batch_size": 1, "checkpoint_every_steps": _STORED, "eval_every_steps": 100}
    endless = make_case(folder, spec=_SPEC, total_steps=100_000, **steps)
    case = Case(endless.config.model_copy(update={"device": device}), endless.env, endless.run)
    variables = {paths.ENV_COLLECTIVE_TIMEOUT: "20"}
    with trainer(case, **variables) as process:
        read_until(process, f"checkpoint of step {_STORED} stored")
        os.kill(children(process)[-1], signal.SIGKILL)
        killed = time.monotonic()
        code, log = finished(process)
    ended = time.monotonic() - killed
    reason, newest = last_word(case).reason, _newest(case.run)
    started = time.monotonic()
    resumed_from, said = _next_attempt(case, variables)
    return {
        "ended_s": round(ended, 1), "within": ended <= LIMIT, "exit_code": code, "reason": reason,
        "newest_checkpoint": newest, "resumed_from_step": resumed_from, "resumed": resumed_from == newest,
        "next_attempt_stored_s": round(time.monotonic() - started, 1),
        **({} if resumed_from == newest else {"log": (log + said)[-1500:]}),
    }  # fmt: skip


def _next_attempt(case: Case, variables: dict[str, str]) -> tuple[int | None, str]:
    """Train until the next attempt has stored a checkpoint of its own; return the step that it went on from."""
    seen: list[str] = []
    with trainer(case.attempt(2), **variables) as process:
        assert process.stderr is not None
        for line in process.stderr:
            seen.append(line)
            if "checkpoint of step" in line and " stored" in line:
                break
    words = next((line.split() for line in seen if "going on from the checkpoint" in line), [])
    return (int(words[-1]) if words else None), "".join(seen)


def _newest(run: Path) -> int | None:
    attempt = (run / paths.checkpoint_dir(1, 0)).parent
    found = [int(path.parent.name.split("-")[1]) for path in attempt.glob(f"*/{paths.CHECKPOINT_MANIFEST}")]
    return max(found, default=None)
