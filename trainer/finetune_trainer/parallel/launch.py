"""The train container where it has several processes: starts one rank a GPU, and has the last word for all of them.

What torchrun's agent does beside this (restarts inside a pod, elastic sizes) is the operator's here: an attempt is one
set of processes. What the agent cannot do decides: on SIGTERM it gives its workers half a minute before it kills them,
a checkpoint may take longer; and the exit code that ends the container must be that of the rank which failed first,
not of those which lost it. The environment of a rank is torchrun's. Nothing here loads torch.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from finetune_contract import paths
from finetune_contract.exit_codes import BY_CODE, KILLED, ExitCode
from finetune_contract.outcome import TerminationMessage
from finetune_contract.run_config import RunConfig
from finetune_trainer.environment import Environment
from finetune_trainer.logs import log, logging_to_stderr
from finetune_trainer.preemption import SIGNALS

PATIENCE = 5.0
"""Seconds that other ranks get to end by themselves after one has failed: theirs may be the better reason."""
KILL_AFTER = 15.0
"""Seconds between SIGTERM and SIGKILL for the ranks that a failed one leaves behind."""
LET_OTHERS_END = 20.0
"""Seconds that a pod which only lost another one leaves to that one, to end first."""
_POLL = 0.1
_LOST = (ExitCode.RANK_LOST, ExitCode.COLLECTIVE_TIMEOUT)


@dataclass
class _Rank:
    """One process of this pod."""

    number: int
    process: subprocess.Popen[bytes]
    termination_log: Path
    ended_at: float | None = None
    told_to_end: bool = False
    """By us, since another one has failed."""

    @property
    def code(self) -> int | None:
        """Exit code as a container shows it: 128 + the signal's number; None while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than by success or by being told to."""
        return self.code not in (None, ExitCode.SUCCESS, ExitCode.PREEMPTED)


def launch(config: RunConfig, env: Environment, *, log_level: str) -> int:
    """Run the train stage in as many processes as the device asks for; return the exit code of the container."""
    with logging_to_stderr(log_level):
        ranks: list[_Rank] = []
        with _forwarding_signals(ranks):
            _start_all(ranks, config, env, log_level=log_level)
            _wait(ranks)
        code = _last_word(ranks, env)
        if config.device.nodes > 1 and code == ExitCode.RANK_LOST:
            # The pod that failed by itself is to be the first to end: its exit code becomes the attempt's.
            time.sleep(LET_OTHERS_END)
        return code


def _start_all(ranks: list[_Rank], config: RunConfig, env: Environment, *, log_level: str) -> None:
    folder, number = env.work / "ranks", config.device.ranks_per_node
    shutil.rmtree(folder, ignore_errors=True)
    log.info("train: %d processes", number)
    shared = {
        **_meeting_place(config),
        "WORLD_SIZE": str(config.device.ranks),
        "LOCAL_WORLD_SIZE": str(number),
        # The pod's threads are shared out; torchrun gives one where nothing is said.
        "OMP_NUM_THREADS": str(max(1, int(os.environ.get("OMP_NUM_THREADS") or 1) // number)),
    }
    first = number * _node()
    for local_rank in range(number):
        own = {"RANK": str(first + local_rank), "LOCAL_RANK": str(local_rank)}
        ranks.append(_start({**shared, **own}, folder / str(local_rank), env.config, log_level=log_level))


def _node() -> int:
    """Return this pod's place among those of an Indexed Job."""
    return int(os.environ.get("JOB_COMPLETION_INDEX") or 0)


def _meeting_place(config: RunConfig) -> dict[str, str]:
    """Return where the ranks meet: the first pod, by its name in the headless Service, or this machine."""
    if config.device.nodes == 1:
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    return {"MASTER_ADDR": os.environ[paths.ENV_RENDEZVOUS], "MASTER_PORT": str(paths.POD_PORT)}


def _start(variables: dict[str, str], folder: Path, config_file: Path, *, log_level: str) -> _Rank:
    folder.mkdir(parents=True)
    termination_log, number = folder / "termination-log", int(variables["RANK"])
    # What all ranks would say, the first one says.
    level = "WARNING" if number and log_level == "INFO" else log_level
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer", "train", "--config", str(config_file), "--log-level", level],
        env={**os.environ, **variables, paths.ENV_TERMINATION_LOG: str(termination_log)},
        stdin=subprocess.DEVNULL,
        process_group=0,  # a terminal's Ctrl-C comes from us, and once
    )
    return _Rank(number, process, termination_log)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def _forwarding_signals(ranks: list[_Rank]) -> Iterator[None]:
    """Pass SIGTERM on to every rank inside, those that are started later included."""

    def forward(_number: int, _frame: FrameType | None) -> None:
        _signal(ranks, signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: list[_Rank]) -> None:
    """Wait until all have ended; when one has failed the others are ended, since they would wait for it."""
    failed_at: float | None = None
    told = False
    while _running(ranks):
        time.sleep(_POLL)
        now = time.monotonic()
        if failed_at is None:
            failed_at = now if any(rank.failed for rank in ranks) else None
        elif now - failed_at > PATIENCE + (0 if _hung(ranks) else KILL_AFTER):
            _end(ranks, signal.SIGKILL)
        elif now - failed_at > PATIENCE and not told:
            told = True
            _end(ranks, signal.SIGTERM)


def _running(ranks: list[_Rank]) -> bool:
    for rank in ranks:
        if rank.ended_at is None and rank.code is not None:
            rank.ended_at = time.monotonic()
    return any(rank.ended_at is None for rank in ranks)


def _hung(ranks: list[_Rank]) -> bool:
    """Whether a rank has waited in vain: the one that it waited for will not hear a signal either."""
    return any(rank.code == ExitCode.COLLECTIVE_TIMEOUT for rank in ranks)


def _end(ranks: list[_Rank], number: signal.Signals) -> None:
    for rank in ranks:
        rank.told_to_end |= rank.ended_at is None
    _signal(ranks, number)


def _signal(ranks: list[_Rank], number: signal.Signals) -> None:
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.send_signal(number)


def _last_word(ranks: list[_Rank], env: Environment) -> int:
    """Write the termination message of the rank that decides; return its exit code."""
    decisive = _decisive(ranks)
    message = _message_of(decisive)
    if message.exit_code:
        log.error("train: rank %d ended the attempt: %s: %s", decisive.number, message.reason, message.message)
    with suppress(OSError):  # on a user's own machine there is no kubelet that would read it
        env.termination_log.write_text(message.encode(), encoding="utf-8")
    return message.exit_code


def _decisive(ranks: list[_Rank]) -> _Rank:
    """Return the rank that failed first by itself, else one that lost others, else the first one."""

    def order(rank: _Rank) -> tuple[int, float]:
        own = rank.failed and not rank.told_to_end
        kind = 0 if own and rank.code not in _LOST else 1 if own else 2
        return kind, (rank.ended_at or 0.0) if kind < 2 else rank.number  # noqa: PLR2004

    return min(ranks, key=order)


def _message_of(rank: _Rank) -> TerminationMessage:
    code = rank.code or 0
    with suppress(OSError):
        said = TerminationMessage.decode(rank.termination_log.read_text(encoding="utf-8"))
        if said and said.exit_code == code:
            return said
    row = BY_CODE.get(code)
    reason, text = (row.reason, row.meaning) if row else ("RankFailed", f"Rank {rank.number} {_how(code)}.")
    return TerminationMessage(stage="train", exit_code=code, reason=reason, message=text)


def _how(code: int) -> str:
    if code == KILLED:
        return "was killed: by the kernel if the pod's memory ran out"
    return f"ended by signal {code - 128}" if code > 128 else f"ended with exit code {code}"  # noqa: PLR2004
