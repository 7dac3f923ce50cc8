"""What `benchmarks.multi_gpu` chooses and makes of its lines; and that it runs, with a tiny model on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ranks.cases import Case, cases, chosen, rounds
from benchmarks.ranks.table import against, lines_of, scaling, table


def line(name: str, speed: float, **more: Any) -> dict[str, Any]:
    return {"case": name, "tokens_per_second_a_gpu": speed, "peak_gb": 100.0, "mfu": 0.5, **more}


LINES = [
    line("speed ours LoRA ddp x1 fixed", 1000.0),
    line("speed ours LoRA ddp x8 fixed", 950.0, estimate_gb=105.0),
    line("speed plain LoRA ddp x8 fixed", 500.0),
    line("speed ours Full z2 x2 fixed", 800.0),
    line("speed ours Full z2 x8 fixed", 720.0),
]


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        pytest.param(0, None, id="one GPU is what others are held against"),
        pytest.param(1, 0.95, id="adapters against one GPU"),
        pytest.param(3, None, id="two are the fewest of a model that is shared out"),
        pytest.param(4, 0.9, id="trained whole against two"),
    ],
)
def test_scaling_is_against_the_fewest_gpus(at: int, expected: float | None) -> None:
    assert scaling(LINES[at], LINES) == expected


def test_the_trainer_stands_beside_the_script_with_as_many_gpus() -> None:
    assert [against(one, LINES, "plain") for one in LINES] == [None, 1.9, None, None, None]


def test_a_table_has_a_row_a_speed() -> None:
    rows = table([*LINES, {"case": "fault ours LoRA ddp x2 fixed", "ended_s": 20}]).splitlines()

    assert len(rows) == 2 + len(LINES)
    assert rows[3] == "| LoRA | ddp | 8 | fixed | ours | 950 | 0.950 | 1.900 |  | 50.0% | 100.0 | 105.0 | +5.0% |"


def test_a_case_that_ran_again_counts_once_and_a_failed_one_not_at_all(tmp_path: Path) -> None:
    name = LINES[0]["case"]
    found = [line(name, 1.0), {"case": name, "error": [1]}, line(name, 2.0), {"cards": []}]
    (tmp_path / "lines").write_text("".join(f"{json.dumps(one)}\n" for one in found))

    assert [one["tokens_per_second_a_gpu"] for one in lines_of([tmp_path / "lines"])] == [2.0]


def test_a_machine_has_the_cases_that_its_gpus_can_run() -> None:
    assert {case.gpus for case in cases(4)} == {1, 2, 4}
    assert {case.gpus for case in cases(4) if case.method == "Full" and case.kind == "speed"} == {2, 4}
    assert {case.gpus for case in cases(4) if case.kind == "resume"} == {2}


def test_cases_are_chosen_by_words_in_the_order_asked_for() -> None:
    found = chosen(cases(2), [["fault"], ["ours", "QLoRA", "x1"]])

    assert [case.name for case in found] == [
        "fault ours LoRA ddp x2 fixed",
        "speed ours QLoRA ddp x1 fixed",
        "speed ours QLoRA ddp x1 instructions",
    ]


def test_cases_of_one_gpu_run_side_by_side_and_the_others_alone() -> None:
    one, two = (Case("speed", "ours", "LoRA", 0, gpus, "fixed") for gpus in (1, 2))

    assert list(rounds([one, two, one, one], gpus=2)) == [[two], [one, one], [one]]


def test_it_runs_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.multi_gpu", "--scale", "tiny", "--scratch", str(tmp_path)]
    words = ["speed", "ours", "Full", "z2", "instructions"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--only", *words], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    _, found = map(json.loads, done.stdout.splitlines())
    assert found["case"] == "speed ours Full z2 x2 instructions"
    assert found["tokens_per_second_a_gpu"] > 0
    assert len(found["losses"]) == 4
