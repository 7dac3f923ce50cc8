"""`benchmarks.gpu` runs: a tiny model on the CPU, ours and the plain TRL script, each in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_report import chart, tables
from benchmarks.gpu_split import kind_of


def test_both_sides_train_on_the_same_tokens(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path), "--smoke", "--steps", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--warm-up", "1"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]

    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    ours, plain = ({name: one.get(name) for name in ("who", "losses", "error")} for one in results)
    assert (ours["who"], plain["who"]) == ("ours", "TRL")
    assert ours["losses"] == pytest.approx(plain["losses"], rel=1e-3)


def test_the_report_says_by_how_much_ours_is_faster_and_what_failed() -> None:
    shared = {"case": "8B bf16", "repeats": 4, "spread": 0.01, "peak_gb": 40.0, "start_s": 50.0}
    results = [
        {**shared, "who": "Unsloth", "label": "Unsloth, micro-batch 2", "tokens_per_second": 1000.0},
        {**shared, "who": "ours", "label": "ours", "tokens_per_second": 1500.0},
        {**shared, "who": "TRL", "label": "TRL, micro-batch 2", "error": "exit code 1"},
    ]

    found = tables({"results": results}).splitlines()
    assert found[2].startswith("| 8B bf16 | ours | 1,500 |  |")
    assert "| 1,000 | 1.50 x |" in found[3]
    assert "| exit code 1 |" in found[4]
    assert chart(results, title="a card").count("<rect") == 2


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_tst_192x192", "GEMM"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", "attention"),
        ("_walk", "loss"),
        ("_walk_backward", "elementwise"),
        ("_dequantise", "dequantisation"),
        ("_quantise", "quantisation"),
        ("triton_poi_fused_add", "elementwise"),
        ("Memset (Device)", "other"),
    ],
)
def test_kernels_are_of_a_kind(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind
