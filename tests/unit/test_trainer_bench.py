"""The command line of `make bench-trainer`."""

from __future__ import annotations

import pytest

from benchmarks.trainer_bench import parser


@pytest.mark.parametrize("asked", [[], ["LoRA"], ["QLoRA", "DPO"]], ids=["all", "one", "two"])
def test_methods_can_be_named_or_left_out(asked: list[str]) -> None:
    assert parser().parse_args(asked).methods == asked
