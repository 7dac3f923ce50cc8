"""Each method once through `finetune run` on this machine's GPU, or its CPU where it has none:

    python -m benchmarks.gpu_smoke --tokenizer FOLDER [--size 1b|tiny] [--methods LoRA QLoRA Full]
                                   [--gpus N --zero-stage 0|2|3]

The model is random, of a real shape, made here: what is shown is that the one code path works on the card, what it
costs, and whether the memory estimate was right; not quality. One JSON line a method, versions in the first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.installed import versions_of
from tests.support.datasets import chats, write_lines

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8},
}  # fmt: skip
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


def make_model(folder: Path, tokenizer: Path, shape: dict[str, int]) -> int:
    """Write a random Llama with the given tokenizer; return its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        tie_word_embeddings=True, **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder / file.name)
    return sum(parameter.numel() for parameter in model.parameters())


def job(method: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the manifest of one run, all on this machine's disk."""
    steps = options.steps
    shared = {"deepspeed": {"zeroStage": options.zero_stage}} if options.zero_stage is not None else {}
    return {
        "apiVersion": "finetuning.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": f"smoke-{method.lower()}"},
        "spec": {
            "method": method,
            "model": {"uri": f"file://{folder / 'model'}"},
            "dataset": {"uri": f"file://{folder / 'data.jsonl'}"},
            "output": {"uri": f"file://{folder / method}"},
            "hyperparameters": {"maxSteps": steps},
            # A checkpoint of Full is twelve bytes a parameter: one is enough to show that it works.
            "checkpoint": {"everySteps": steps, "keep": 1},
            "evaluation": {"metrics": ["exactMatch"], "maxExamples": 8, "maxNewTokens": 16},
            "resources": {"gpusPerNode": options.gpus},
            **shared,
        },
    }


def run(method: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one method; return its figures."""
    manifest = folder / f"{method}.json"
    manifest.write_text(json.dumps(job(method, folder, options)))
    start = time.monotonic()
    command = [sys.executable, "-m", "finetune_operator.cli", "run", str(manifest), "--work-dir", str(folder / "work")]
    code = subprocess.run(command, env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}, check=False).returncode
    seconds = time.monotonic() - start
    result: dict[str, Any] = {"method": method, "exit": code, "seconds": round(seconds, 1)}
    if code == 0:
        (outputs,) = (folder / method).glob("run-*")
        evaluation = json.loads((outputs / "evaluation.json").read_text())
        result["held_out_loss"] = {name: evaluation[name]["loss"] for name in ("base", "tuned")}
        result["estimate"] = json.loads((outputs / "prepared" / "prepared.json").read_text())["estimate"]
        result["training"] = {k: v for k, v in evaluation["training"].items() if isinstance(v, int | float)}
    return result


def environment(parameters: int) -> dict[str, Any]:
    """Return what the figures depend on."""
    import torch

    found: dict[str, Any] = {"parameters": parameters, "python": sys.version.split()[0]}
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return found | versions_of(PACKAGES)


def main() -> int:
    """Run the methods; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer files and chat template")
    parser.add_argument("--size", choices=sorted(SHAPES), default="1b")
    parser.add_argument("--methods", nargs="+", default=["LoRA", "QLoRA", "Full"])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--zero-stage", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpu-smoke-") as scratch:
        folder = Path(scratch)
        print(
            json.dumps(environment(make_model(folder / "model", options.tokenizer, SHAPES[options.size]))), flush=True
        )
        write_lines(folder / "data.jsonl", chats(600))
        results = [run(method, folder, options) for method in options.methods]
    for result in results:
        print(json.dumps(result), flush=True)
    return int(any(result["exit"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
