"""`make demo`, once, as a user runs it: it ends well only if the outputs are in the store and are what they must be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTIONS = (
    "kubectl apply -f examples/quickstart.yaml",
    "kubectl get finetunejobs",
    "base against tuned",
    "answers before and after",
    "objects below s3://outputs/quickstart/run-1",
    "the outputs against manifest.json",
    "how long it took",
)


def test_the_demo_tunes_a_model_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dev.demo", f"--run-dir={tmp_path}", "run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^--- (.*) ---$", done.stdout, re.MULTILINE) == list(SECTIONS)
    phases = re.findall(r"^\[\d+:\d\d\] ([A-Z]\w+)", done.stdout, re.MULTILINE)
    assert phases[0] in ("Pending", "Preparing")
    assert phases[-1] == "Succeeded"
    scores = re.search(r"^exact answers +(\d+)% +(\d+)% ", done.stdout, re.MULTILINE)
    assert scores is not None
    # What the base model cannot do and the tuned one can, on order numbers that it has never seen.
    assert int(scores[1]) <= 5
    assert int(scores[2]) >= 80
    for name in ("adapter/adapter_model.safetensors", "merged/model.safetensors", "manifest.json", "report.html"):
        assert re.search(rf"  {re.escape(name)}$", done.stdout, re.MULTILINE)
    assert "sha256 of each as in the manifest" in done.stdout
    assert done.stdout.endswith("everything is taken down\n")
    assert list(tmp_path.iterdir()) == []
