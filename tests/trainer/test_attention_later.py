"""Attention kernels that take long to come are loaded beside a run's steps, where it is long enough."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from threading import Event

import pytest
import torch

from finetune_trainer.fast.kernels.attention_cute import Cute
from finetune_trainer.fast.kernels.attention_later import WORTH_SECONDS, Later
from finetune_trainer.fast.kernels.layout import Layout


class Run:
    """A run of steps of a second each, and what came of the kernels."""

    def __init__(self, *, fails: bool = False) -> None:
        self.taken = 0
        self.asked, self.may_come = Event(), Event()
        self._fails = fails
        self._later = Later(self._load, self._take, clock=self._seconds().__next__)

    def steps(self, number: int, *, left: int) -> None:
        for _ in range(number):
            self._later.step_begins(left=left)

    def until_loaded(self) -> None:
        self.may_come.set()
        thread = self._later._thread
        assert thread is not None
        thread.join()

    def _seconds(self) -> Iterator[float]:
        yield from map(float, range(1000))

    def _load(self) -> None:
        self.asked.set()
        self.may_come.wait()
        if self._fails:
            raise RuntimeError("no compiler")

    def _take(self) -> None:
        self.taken += 1


LONG, SHORT = int(WORTH_SECONDS) + 1, int(WORTH_SECONDS) - 1


def test_they_are_taken_once_between_two_steps_when_they_have_come() -> None:
    run = Run()
    run.steps(9, left=LONG)
    before = run.taken
    run.until_loaded()
    run.steps(3, left=LONG)

    assert (before, run.taken) == (0, 1)


def test_a_short_run_does_without() -> None:
    run = Run()
    run.steps(9, left=SHORT)

    assert not run.asked.is_set()


def test_what_cannot_be_loaded_is_said_and_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(fails=True)
    run.steps(9, left=LONG)
    with caplog.at_level("WARNING"):
        run.until_loaded()
    run.steps(3, left=LONG)

    assert run.taken == 0
    assert "FA4 is installed and cannot be used: RuntimeError: no compiler" in caplog.text


def parameters(function: str) -> set[str]:
    """Return those of a function of the package's; to import it takes 14 s, and to call it a GPU."""
    package = find_spec("flash_attn.cute")
    assert package is not None
    assert package.origin is not None
    tree = ast.parse((Path(package.origin).parent / "interface.py").read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return {one.arg for one in found.args.args}


@pytest.mark.parametrize("function", ["_flash_attn_fwd", "_flash_attn_bwd"])
def test_the_installed_version_takes_what_it_is_called_with(function: str) -> None:
    layout = Layout(torch.tensor([0, 3], dtype=torch.int32), (3,))

    assert set(Cute(layout)._settings(scale=1.0, window=2)) <= parameters(function)
