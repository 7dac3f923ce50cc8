"""The operator killed at every single write of a job's life, each time started again."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from tests.support.jobs import RunningJob


class Killer:
    """Kills the operator at the n-th write of a job's life, before the API server has it or after."""

    def __init__(self, proxy, operator, number: int, *, moment: str) -> None:
        self._proxy, self._operator, self._number = proxy, operator, number
        self.has_struck = threading.Event()
        proxy.forget()
        hook = "before_write" if moment == "before" else "after_write"
        setattr(proxy, hook, self._at)

    def _at(self, number: int) -> bool:
        if number != self._number or self.has_struck.is_set():
            return False
        os.kill(self._operator.pid, signal.SIGKILL)
        self.has_struck.set()
        return True

    def revive(self) -> None:
        """Bring the operator back."""
        self._operator.kill()
        self._operator.start()


@pytest.mark.long
@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_operator_that_is_killed_at_a_write_loses_nothing_and_doubles_nothing(
    start, proxy, operator, moment
) -> None:
    lived = []
    for number in range(1, 99):
        killer = Killer(proxy, operator, number, moment=moment)
        job = start(name=f"bot-{number}")
        job.until(lambda job=job, killer=killer: killer.has_struck.is_set() or _is_over(job), what="kill or end")
        if not killer.has_struck.is_set():
            break
        killer.revive()
        job.reaches("Succeeded")
        assert (number, job.doubled()) == (number, [])
        lived.append(number)
    assert len(lived) >= 8, f"a job's life has {len(lived)} writes"


def _is_over(job: RunningJob) -> bool:
    return job.status.get("phase") == "Succeeded" and {"Prepared", "Training", "Succeeded"} <= set(job.events())
