"""Triton's kernels compute what the plain torch beside them does: here in Triton's interpreter, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "interpreted_kernels.py"


@pytest.mark.skipif(find_spec("triton") is None, reason="torch brings Triton along with CUDA alone")
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
    assert done.stdout.split() == ["gated", "loss", "nf4"]
