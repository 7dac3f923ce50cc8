"""Where the processes of a run find each other before they train: late pods are waited for, and signals heard."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch import distributed

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.environment import collective_timeout
from finetune_trainer.errors import TrainerError
from finetune_trainer.logs import log
from finetune_trainer.preemption import PREEMPTION

MEETING = 1800.0
"""Seconds that the first pods of an attempt wait for the last ones: longer costs more than it gives."""
_SAY_AFTER = 10.0


def meet(rank: int, size: int) -> Any:
    """Return the store through which the ranks find each other, once all are there.

    Pods of an attempt start when their nodes have room, and the first one's name is known some seconds after it has
    an address. Raises COLLECTIVE_TIMEOUT, or PREEMPTED at a signal.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    _until(lambda: rank == 0 or _answers(host, port), f"the first process of the run at {host}:{port}")
    store = distributed.TCPStore(  # type: ignore[attr-defined]  # it is exported by name
        host, port, size, rank == 0, timeout=timedelta(seconds=collective_timeout()), wait_for_workers=False
    )
    store.add("arrived", 1)
    _until(lambda: store.add("arrived", 0) >= size, f"all {size} processes of the run")
    return store


def _until(there: Callable[[], bool], what: str) -> None:
    started, said = time.monotonic(), False
    while not there():
        PREEMPTION.check()
        waited = time.monotonic() - started
        if waited > MEETING:
            raise TrainerError(ExitCode.COLLECTIVE_TIMEOUT, f"Waited {MEETING:.0f} s in vain for {what}.")
        if not said and waited > _SAY_AFTER:
            said = True
            log.warning("waiting for %s", what)
        time.sleep(0.2)


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except OSError:  # no name yet, no pod yet, not listening yet
        return False
