"""Triton's kernels compute what the plain torch beside them does: here in Triton's interpreter, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "support" / "interpreted_kernels.py"


def test_triton_and_torch_agree() -> None:
    """In a process of its own: Triton looks at the variable when it is imported."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["gated", "loss", "nf4", "fp8"]
