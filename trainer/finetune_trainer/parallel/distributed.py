"""The ranks of one run: one process a GPU, all training the same model on shares of the same batch.

Gradients travel through the default group (NCCL between GPUs, gloo on CPUs). What the ranks have to agree on (to stop,
which plan fits, where a checkpoint lies, sums of held-out losses) goes through a second, gloo group on the CPU: it
never waits for a GPU, and a rank that waits in it still hears SIGTERM. Whatever depends on one machine's clock, memory,
disk or signals is agreed on here before anything follows from it: ranks that decide on their own would wait for each
other for ever. With one process everything here is what that process says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.environment import collective_timeout, is_rank
from finetune_trainer.errors import TrainerError
from finetune_trainer.failures import explain
from finetune_trainer.parallel.rendezvous import meet
from finetune_trainer.parallel.watchdog import WATCHDOG
from finetune_trainer.preemption import PREEMPTION

AGREEMENT = 15.0
"""Seconds that a rank which was told to stop waits for the others (job-traps 7)."""
FETCHING = 7200.0
"""Seconds that one process of a node may fetch for the others, or store a checkpoint while they wait."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: Any = None
    """The gloo group; None with one process."""
    in_step: bool = False
    """No process has the model's whole weights, so that each takes part in every pass of each other."""
    whole_weights: Callable[[], AbstractContextManager[None]] = nullcontext
    """Inside, every process has them nevertheless where they fit; all enter together."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that speaks and writes for all."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return whether a rank says yes; all get the same answer at the same point."""
        return bool(self._reduce([float(flag)], distributed.ReduceOp.MAX)[0])

    def worst(self, number: int) -> int:
        """Return the highest number of any rank."""
        return int(self._reduce([float(number)], distributed.ReduceOp.MAX)[0])

    def total(self, *numbers: float) -> list[float]:
        """Return the sums of all ranks' numbers."""
        return self._reduce([float(number) for number in numbers], distributed.ReduceOp.SUM)

    def barrier(self, *, limit: float | None = None) -> None:
        """Wait until all ranks are here; with a limit of its own a rank that was told to stop waits as well."""
        self._reduce([0.0], distributed.ReduceOp.MAX, limit=limit)

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what the first rank makes of it, on all ranks."""
        made = make() if self.first else None
        result: T = self.gather(made)[0]
        return result

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of the ranks."""
        if self.size == 1:
            return [value]
        self.barrier(limit=FETCHING)
        values = [None] * self.size
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def share(self, parts: Sequence[T], work: Callable[[T], R], *, safe_point: Callable[[], None]) -> list[R]:
        """Return what becomes of each part, every part being worked on by one rank.

        `safe_point` is called before each round, on all ranks; it may raise on all of them. Where the work fails on
        one rank, all raise its failure.
        """
        if self.size == 1:
            return list(self._alone(parts, work, safe_point))
        done: dict[int, R] = {}
        failure: TrainerError | None = None
        for start in range(0, len(parts), self.size):
            safe_point()
            # In step, a rank that has nothing left does what another one does.
            place = min(start + self.rank, len(parts) - 1) if self.in_step else start + self.rank
            if failure is None and place < len(parts):
                try:
                    done[place] = work(parts[place])
                except Exception as error:
                    if self.in_step:  # the others wait inside the model: this process ends, and then they
                        raise
                    # The others go on until they hear of it: a rank that left would leave them waiting.
                    failure = explain(error)
        return self._collected(done, failure, len(parts))

    @staticmethod
    def _alone(parts: Sequence[T], work: Callable[[T], R], safe_point: Callable[[], None]) -> Iterator[R]:
        for part in parts:
            safe_point()
            yield work(part)

    def _collected(self, done: dict[int, R], failure: TrainerError | None, number: int) -> list[R]:
        everything: dict[int, R] = {}
        for part, failed in self.gather((done, failure and (int(failure.code), failure.message))):
            if failed:
                raise TrainerError(ExitCode(failed[0]), failed[1])
            everything |= part
        return [everything[place] for place in range(number)]

    @contextmanager
    def one_a_node(self) -> Iterator[None]:
        """Let the first process of each node fetch what the others then find on its disk."""
        if self.local_rank:
            self.barrier(limit=FETCHING)
        yield
        if not self.local_rank:
            self.barrier(limit=FETCHING)

    def copy_from_first(self, model: Any) -> None:
        """Give every rank the first one's trained weights."""
        if self.size == 1:
            return
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    distributed.broadcast(parameter.data, src=0)

    def _reduce(self, numbers: list[float], how: Any, *, limit: float | None = None) -> list[float]:
        if self.size == 1:
            return numbers
        values = torch.tensor(numbers, dtype=torch.float64)
        _wait(distributed.all_reduce(values, how, group=self.group, async_op=True), limit=limit)
        result: list[float] = values.tolist()
        return result


WORLD = World()
"""The process's one; `join` replaces it where there are several."""


def world() -> World:
    """Return this process among those of the run."""
    return WORLD


def join() -> None:
    """Meet the other ranks, as `launch` has described them in the environment (torchrun's variables)."""
    global WORLD  # noqa: PLW0603 - there is one a process
    # DeepSpeed, which accelerate imports wherever it is installed, would guess, and say so.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    if not is_rank():
        return
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=meet(rank, size),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=collective_timeout()),
        device_id=torch.device("cuda", local_rank) if on_gpu else None,
    )
    # Its waits are limited by `_wait`.
    group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=2 * FETCHING))
    PREEMPTION.needs_agreement = True
    WORLD = World(rank=rank, size=size, local_rank=local_rank, group=group)


def pass_in_step(whole_weights: Callable[[], AbstractContextManager[None]]) -> None:
    """From now on every process takes part in each pass through the model."""
    global WORLD  # noqa: PLW0603
    WORLD = replace(WORLD, in_step=True, whole_weights=whole_weights)


def told_to_stop() -> bool:
    """Whether the run is to stop, agreed by all ranks: a signal to one of them counts for all."""
    WATCHDOG.alive()
    if world().size > 1 and world().any(PREEMPTION.told):
        PREEMPTION.agree()
    return PREEMPTION.requested


def stop_if_told() -> None:
    """Stop here, on all ranks, if one was told to."""
    told_to_stop()
    PREEMPTION.check()


def _wait(work: Any, *, limit: float | None) -> None:
    """Wait in slices, so that signals are heard. Raises COLLECTIVE_TIMEOUT, PREEMPTED, or what the network says."""
    started, pause = time.monotonic(), 5e-5
    longest = limit or collective_timeout()
    while not work.is_completed():
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
        now = time.monotonic()
        if now - started > longest:
            raise TrainerError(
                ExitCode.COLLECTIVE_TIMEOUT, f"Another process of this run has not answered for {longest:.0f} s."
            )
        told = PREEMPTION.told_at
        if limit is None and told is not None and now - max(started, told) > AGREEMENT:
            raise TrainerError(
                ExitCode.PREEMPTED,
                f"Told to stop, and the other processes have not agreed within {AGREEMENT:.0f} s: no checkpoint.",
            )
    work.wait()
