"""The quick part of `make quality`: SmolLM2 learns a format in a few steps, and its outputs are one model."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quality import exports
from benchmarks.quality.job import Finished, run_job
from benchmarks.quality.orders import spec_of, write_orders
from tests.support.training import THIRD_PARTY

pytestmark = THIRD_PARTY

STEPS = 16


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("quality")
    spec = spec_of(write_orders(folder / "orders.jsonl", count=100), steps=STEPS)
    spec["hyperparameters"]["learningRate"] = 1e-3
    few = {"prompts": ["Hello."], "everySteps": STEPS}
    spec["evaluation"] |= {"everySteps": STEPS, "maxExamples": 12, "samples": few}
    return run_job("format", spec, folder=folder)


def test_a_strict_format_is_learned(tuned: Finished) -> None:
    base, after = tuned.evaluation["base"], tuned.evaluation["tuned"]
    assert base["jsonSchema"] < 0.2
    assert after["jsonSchema"] > 0.8


def test_the_outputs_are_one_model(tuned: Finished) -> None:
    assert [figure for figure in exports.figures(tuned) if not figure.holds] == []


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    data = tmp_path / "empty.jsonl"
    data.write_text("")

    with pytest.raises(SystemExit, match=r"broken: exit code(.|\n)*DatasetTooSmall"):
        run_job("broken", spec_of(data), folder=tmp_path)
