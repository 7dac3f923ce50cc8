"""How long a rank waits for the others: one that is told to end does not use up its grace period (job-traps 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.parallel import distributed
from finetune_trainer.parallel.distributed import FETCHING
from finetune_trainer.preemption import PREEMPTION
from tests.support.training import forget_preemption

TIMEOUT = 600.0
"""What the collective may take."""


class Clock:
    """The time, which passes while something sleeps; at a given second the signal comes."""

    def __init__(self, *, told_at: float | None = None) -> None:
        self.now, self._told_at = 0.0, told_at

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self._told_at is not None and self.now >= self._told_at and not PREEMPTION.told:
            PREEMPTION.request()


class Dead:
    """A collective whose other side never answers; or does, at last."""

    def __init__(self, clock: Clock, *, answers_at: float = float("inf")) -> None:
        self._clock, self._answers_at = clock, answers_at

    def is_completed(self) -> bool:
        return self._clock.now >= self._answers_at

    def wait(self) -> None:
        assert self.is_completed()


@pytest.fixture
def clock_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Clock]]:
    def make(**changes: float) -> Clock:
        clock = Clock(**changes)
        monkeypatch.setattr(distributed, "time", clock)
        monkeypatch.setattr("finetune_trainer.preemption.time", clock)
        monkeypatch.setattr(distributed, "collective_timeout", lambda: TIMEOUT)
        return clock

    yield make
    forget_preemption()


@pytest.mark.parametrize(
    ("told_at", "code", "ends"),
    [
        pytest.param(40.0, ExitCode.PREEMPTED, 55.0, id="told while it waits"),
        pytest.param(None, ExitCode.COLLECTIVE_TIMEOUT, TIMEOUT, id="not told"),
    ],
)
def test_a_rank_gives_up_fifteen_seconds_after_it_was_told(clock_with, told_at, code, ends) -> None:
    clock = clock_with(told_at=told_at)
    with pytest.raises(TrainerError) as ended:
        distributed._wait(Dead(clock), limit=None)
    assert (ended.value.code, round(clock.now)) == (code, ends)


def test_one_that_was_told_before_has_fifteen_seconds_from_the_wait_on(clock_with) -> None:
    """It was at work meanwhile, and so may the others be."""
    clock = clock_with()
    PREEMPTION.request()
    clock.now = 100.0
    with pytest.raises(TrainerError, match="have not agreed within 15 s: no checkpoint"):
        distributed._wait(Dead(clock), limit=None)
    assert round(clock.now) == 115


def test_ranks_that_agree_in_time_go_on_to_their_checkpoint(clock_with) -> None:
    clock = clock_with(told_at=1.0)
    distributed._wait(Dead(clock, answers_at=14.0), limit=None)


def test_a_checkpoint_that_is_being_stored_is_waited_for(clock_with) -> None:
    clock = clock_with(told_at=1.0)
    distributed._wait(Dead(clock, answers_at=FETCHING - 1), limit=FETCHING)
