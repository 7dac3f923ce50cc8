"""The cases of `benchmarks.multi_gpu`: what is trained, on how many GPUs, by whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

OURS, PLAIN, KEPT = "ours", "plain", "plain-kept"
"""The trainer; TRL's script with its defaults; the same script keeping activations, which TRL's default does not."""
SPEED, CHECKPOINT, RESUME, FAULT = "speed", "checkpoint", "resume", "fault"
FIXED, INSTRUCTIONS = "fixed", "instructions"
LEARNED = 4
"""Steps of the runs that store a checkpoint and go on from it, in the middle."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large things are."""

    name: str
    shape: str
    """A name of `estimate_settings.SHAPES`."""
    checkpoint_shape: str
    """What is stored and gone on with: of an 8B model, trained whole, that would be 96 GB."""
    longest: int
    mean: int
    """Tokens of an instruction, in the mean."""
    tokens: int
    """Tokens of a step, a GPU: the work of each GPU is the same on any number of them."""
    steps: int
    warm_up: int
    """First steps, whose time does not count."""


SCALES = {
    one.name: one
    for one in (
        Scale("8b", "llama-8b", "llama-1b", 2048, 280, 32768, 6, 2),
        Scale("tiny", "tiny", "tiny", 64, 12, 256, 4, 1),
    )
}


@dataclass(frozen=True, slots=True)
class Case:
    """One set of processes."""

    kind: str
    side: str
    method: str
    stage: int
    """ZeRO's; 0 is DDP."""
    gpus: int
    data: str

    @property
    def name(self) -> str:
        """What it is called in the log, and chosen by."""
        sharing = f"z{self.stage}" if self.stage else "ddp"
        return f"{self.kind} {self.side} {self.method} {sharing} x{self.gpus} {self.data}"

    def to_json(self) -> str:
        """Return it as an argument of a process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Case:
        """Return what `to_json` was made of."""
        found: dict[str, Any] = json.loads(text)
        return cls(**found)


def cases(gpus: int) -> list[Case]:
    """Return all cases of a machine, what matters most first: one GPU beside as many as there are."""
    numbers = [number for number in (1, 2, 4, 8) if number <= gpus] or [1]
    return [*_speed(numbers), *_checkpoints(numbers[-1]), Case(FAULT, OURS, "LoRA", 0, numbers[-1], FIXED)]


def _speed(numbers: list[int]) -> Iterator[Case]:
    for data in (FIXED, INSTRUCTIONS):
        for side in (OURS, PLAIN):
            for method in ("LoRA", "QLoRA"):
                yield from (Case(SPEED, side, method, 0, number, data) for number in numbers)
        for stage in (2, 3):
            for side in (OURS, PLAIN, KEPT):
                yield from (Case(SPEED, side, "Full", stage, number, data) for number in numbers if number > 1)


def _checkpoints(number: int) -> Iterator[Case]:
    for method, stage in (("Full", 2), ("Full", 3), ("LoRA", 0)):
        yield Case(CHECKPOINT, OURS, method, stage, number, FIXED)
        yield Case(RESUME, OURS, method, stage, max(number // 2, 1), FIXED)


def chosen(found: list[Case], words: list[list[str]]) -> list[Case]:
    """Return the cases whose name has all words of one of the selections, in the selections' order; all without one."""
    if not words:
        return found
    picked = [case for selection in words for case in found if set(selection) <= set(case.name.split())]
    return list(dict.fromkeys(picked))


def rounds(found: list[Case], *, gpus: int) -> Iterator[list[Case]]:
    """Yield the cases as they run: those of one GPU side by side, one a GPU, the others alone."""
    waiting: list[Case] = []
    for case in found:
        if case.gpus == 1 and case.kind == SPEED:
            waiting.append(case)
        else:
            yield [case]
        if len(waiting) == gpus:
            yield waiting
            waiting = []
    if waiting:
        yield waiting
