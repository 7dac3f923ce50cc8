"""The trainer's stages as child processes: what a pod's containers are in a cluster.

A signal to this process goes on to the stage as SIGTERM, which checkpoints and ends; a second one ends it at once.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from finetune_contract.exit_codes import BY_CODE, ExitCode
from finetune_contract.outcome import Stage, TerminationMessage

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_stage(
    stage: Stage, *, environment: Mapping[str, str], message_file: Path, log_level: str = "INFO"
) -> TerminationMessage:
    """Run one stage, its log on this process's stderr; return its last word, or what its exit code stands for."""
    message_file.unlink(missing_ok=True)
    # A group of its own: the terminal sends Ctrl-C to all of this one's.
    child = subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer", stage, "--log-level", log_level],
        env=dict(environment),
        process_group=0,
        stdin=subprocess.DEVNULL,
    )
    with _forwarding_signals(child):
        code = child.wait()
    return _last_word(stage, code, message_file)


@contextmanager
def _forwarding_signals(child: subprocess.Popen[bytes]) -> Iterator[None]:
    told = False

    def forward(_number: int, _frame: FrameType | None) -> None:
        nonlocal told
        if told:
            child.kill()
            return
        told = True
        print("\nstopping at the next safe point, with a checkpoint; once more ends it at once", file=sys.stderr)
        child.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_word(stage: Stage, code: int, message_file: Path) -> TerminationMessage:
    try:
        message = TerminationMessage.decode(message_file.read_text(encoding="utf-8"))
    except OSError:
        message = None
    if message and message.exit_code == code:
        return message
    status = 128 - code if code < 0 else code  # as a shell shows a signal
    row = BY_CODE.get(status)
    reason, text = (row.reason, row.meaning) if row else ("Killed" if code < 0 else "UnknownExitCode", _unknown(code))
    return TerminationMessage(stage=stage, exit_code=status, reason=reason, message=text)


def _unknown(code: int) -> str:
    if code == -signal.SIGKILL:
        return "The stage was killed: by the kernel, if the machine's memory ran out, or by a second Ctrl-C."
    return f"The stage ended by signal {-code}." if code < 0 else f"The stage ended with exit code {code}; see its log."


def was_stopped(message: TerminationMessage) -> bool:
    """Whether the stage ended because it was told to."""
    return message.exit_code == ExitCode.PREEMPTED
