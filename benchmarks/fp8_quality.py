"""Does a frozen base in FP8 learn what one in bfloat16 does? `python -m benchmarks.fp8_quality --model FOLDER`: a GPU.

A real small model (`python -m dev.models smollm2 FOLDER`) learns this repository's own English, its docs, by two whole
runs of our stages with nothing different but `quantization.type: fp8`. The held-out losses of the same steps, and those
of base and tuned model at the end, may differ by 1 %. One JSON line; the exit code is 1 if one is off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu_inputs import environment
from finetune_contract import paths

BOUND = 0.01
"""How far a loss may be off, as a share of that in bfloat16."""
KINDS = ("bf16", "fp8")
LONGEST, BATCH = 512, 16
HERE = Path(__file__).parents[1]
_LOG = 2000

Found = dict[str, Any]


def main() -> int:
    """Run both, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fp8-quality-") as scratch:
        folder = Path(scratch)
        write_texts(folder / "docs.jsonl")
        started = {kind: _start(kind, folder, options) for kind in KINDS}
        runs = {kind: _evaluation(process, folder / kind) for kind, process in started.items()}
    found = compared(runs["fp8"], runs["bf16"])
    line = json.dumps(found)
    print(line)
    if options.out:
        options.out.write_text(line + "\n")
    return int(not found["right"])


def write_texts(file: Path) -> None:
    """Write the docs, cut between paragraphs into examples of some hundred words."""
    lines: list[str] = []
    for page in sorted((HERE / "docs").rglob("*.md")):
        text = ""
        for paragraph in page.read_text(encoding="utf-8").split("\n\n"):
            text += f"{paragraph}\n\n"
            if len(text) > LONGEST:
                lines, text = [*lines, text], ""
        lines += [text] if text.strip() else []
    file.write_text("".join(f"{json.dumps({'text': line})}\n" for line in lines), encoding="utf-8")


def run_config(kind: str, folder: Path, *, model: Path, steps: int) -> Found:
    """Return a run's configuration: both are the same but for the base."""
    every = max(steps // 6, 1)
    spec = {
        "method": "LoRA",
        "model": {"uri": f"file://{model.resolve()}"},
        "dataset": {"uri": f"file://{folder}/docs.jsonl", "validation": {"fraction": 0.2}},
        "output": {"uri": f"file://{folder}/{kind}/out", "merged": {"enabled": False}},
        "hyperparameters": {
            "maxSteps": steps, "batchSize": BATCH, "maxSequenceLength": LONGEST, "precision": "bfloat16",
        },
        "evaluation": {"everySteps": every},
        "checkpoint": {"everySteps": 10 * steps},
        **({"quantization": {"type": "fp8"}} if kind == "fp8" else {}),
    }  # fmt: skip
    job = {"name": kind, "namespace": "bench", "uid": kind}
    return {"job": job, "spec": spec, "device": {"gpus": 1}, "configHash": kind}


def _start(kind: str, folder: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    """Prepare a run and train it, in a process of its own beside the other's."""
    place = folder / kind
    place.mkdir()
    config = run_config(kind, folder, model=options.model, steps=options.steps)
    (place / "config.json").write_text(json.dumps(config))
    stages = " && ".join(f'"{sys.executable}" -m finetune_trainer {stage}' for stage in ("prepare", "train"))
    variables = {**os.environ, **environment(place), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(place / "hf")}
    with (place / "log").open("w") as log:
        return subprocess.Popen(["sh", "-c", stages], env=variables, stdout=log, stderr=subprocess.STDOUT, text=True)


def _evaluation(process: subprocess.Popen[str], place: Path) -> Found:
    if code := process.wait():
        sys.exit(f"{place.name}: exit code {code}\n{(place / 'log').read_text(errors='replace')[-_LOG:]}")
    for line in (place / "log").read_text(errors="replace").splitlines():
        if any(said in line for said in ("frozen base", "fast path", "plain path", "differ")):
            print(f"{place.name}: {line}", file=sys.stderr)
    found: Found = json.loads((place / "out" / "run-1" / paths.EVALUATION).read_text())
    return found


def compared(fp8: Found, bf16: Found) -> Found:
    """Return the losses side by side, and whether all are within the bound."""
    pairs = {
        **{f"step {step}": pair for step, pair in _by_step(fp8, bf16).items()},
        "base": (fp8["base"]["loss"], bf16["base"]["loss"]),
        "tuned": (fp8["tuned"]["loss"], bf16["tuned"]["loss"]),
    }
    off = {name: one / other - 1 for name, (one, other) in pairs.items()}
    learned = bf16["base"]["loss"] - bf16["tuned"]["loss"]
    return {
        "case": "held-out loss, FP8 and bfloat16",
        "right": max(map(abs, off.values())) <= BOUND and learned > 10 * BOUND,
        "losses": {name: [round(one, 4) for one in pair] for name, pair in pairs.items()},
        "off_percent": {name: round(100 * share, 3) for name, share in off.items()},
        "computed_by": [one["training"].get("computedBy") for one in (fp8, bf16)],
        "frozen_base": fp8["training"].get("frozenBase"),
    }


def _by_step(fp8: Found, bf16: Found) -> dict[int, tuple[float, float]]:
    found, expected = ({one["step"]: one["value"] for one in run["training"]["heldOutLosses"]} for run in (fp8, bf16))
    return {step: (found[step], expected[step]) for step in sorted(found.keys() & expected.keys())}


if __name__ == "__main__":
    sys.exit(main())
