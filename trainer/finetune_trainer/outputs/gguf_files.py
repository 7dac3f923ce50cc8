"""GGUF files of the merged weights, for llama.cpp and Ollama.

llama.cpp's own converter writes them (`llama_cpp/`, unchanged, in a process of its own: docs/adr/0007-gguf.md), so
architectures, tokenizers and metadata are what llama.cpp expects. What it cannot convert is a warning and no lost run:
the other outputs are complete without it. Every file is held against the merged weights before it is uploaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune_contract.output_spec import GgufType
from finetune_trainer.logs import log
from finetune_trainer.outputs.ollama import modelfile
from finetune_trainer.storage.failures import disk_full

CONVERTER = Path(__file__).parents[1] / "llama_cpp" / "convert_hf_to_gguf.py"
BY_CONVERTER = {GgufType.F32, GgufType.F16, GgufType.BF16, GgufType.Q8_0}
"""Types that the converter writes; the others are made from its f32."""
TOLERANCE = {
    GgufType.F32: 1e-4,
    GgufType.F16: 1e-3,
    GgufType.BF16: 4e-3,
    GgufType.Q8_0: 1e-2,
    GgufType.Q5_1: 4e-2,
    GgufType.Q5_0: 4e-2,
    GgufType.Q4_1: 8e-2,
    GgufType.Q4_0: 8e-2,
}
"""Largest difference of a matrix's norm from the merged one's, as a share of it. Measured on random and real weights,
rounding to these types makes less than half of it.
"""
_DISK_FULL = "No space left on device"
_PRE_TOKENIZER = "BPE pre-tokenizer was not recognized"


class GgufRefusedError(Exception):
    """The model cannot be written as GGUF; the text says why, for the user."""


def write_gguf(
    merged: Path, into: Path, *, types: Sequence[GgufType], name: str, tokenizer: Any, stop_ids: Sequence[int]
) -> list[str]:
    """Write a GGUF file for each type and a Modelfile for the first; return warnings, the reason if nothing is there.

    Raises DISK_FULL.
    """
    into.mkdir(parents=True)
    try:
        for kind in types:
            target = into / file_name(kind)
            _write_type(merged, target, kind=kind, name=name)
            _check(target, merged, kind=kind, tokenizer=tokenizer)
            log.info("gguf: %s, %.1f MB, agrees with the merged weights", target.name, target.stat().st_size / 1e6)
    except GgufRefusedError as error:
        shutil.rmtree(into)
        log.warning("gguf: %s", error)
        return [f"output.gguf: nothing was written: {error}"]
    text, warnings = modelfile(tokenizer, weights=file_name(types[0]), stop_ids=stop_ids)
    (into / "Modelfile").write_text(text, encoding="utf-8")
    return warnings


def file_name(kind: GgufType) -> str:
    """Return the name of a type's file."""
    return f"model-{kind}.gguf"


def _write_type(merged: Path, target: Path, *, kind: GgufType, name: str) -> None:
    if kind in BY_CONVERTER:
        _convert(merged, target, kind=kind, name=name)
        return
    from finetune_trainer.outputs.gguf_quantize import quantize_file

    plain = target.with_name("plain.gguf")
    _convert(merged, plain, kind=GgufType.F32, name=name)
    quantize_file(plain, target, kind=kind)
    plain.unlink()


def _convert(merged: Path, target: Path, *, kind: GgufType, name: str) -> None:
    # NO_LOCAL_GGUF: the installed package gguf, not a copy beside the script. Nothing is asked of a hub.
    environment = {**os.environ, "NO_LOCAL_GGUF": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory(dir=target.parent.parent) as scratch:
        source = _as_the_converter_reads_it(merged, Path(scratch) / name)
        command = [sys.executable, str(CONVERTER), str(source), "--outfile", str(target), "--outtype", str(kind)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return
    log.debug("gguf: the converter said: %s", done.stderr)
    if _DISK_FULL in done.stderr:
        raise disk_full(str(target))
    raise GgufRefusedError(_reason(done.returncode, done.stderr))


def _as_the_converter_reads_it(merged: Path, folder: Path) -> Path:
    """Return the model folder with what transformers 5 writes in another way than the converter expects.

    The folder's name becomes the model's.
    """
    folder.mkdir()
    for path in merged.iterdir():
        (folder / path.name).symlink_to(path.absolute())
    changes: dict[str, dict[str, Any]] = {}
    config = json.loads((merged / "config.json").read_text())
    if "n_positions" in config:
        changes["config.json"] = {"n_ctx": config["n_positions"]}
    if config["model_type"] == "phi3" and not (merged / "tokenizer.model").is_file():  # Phi 4
        changes["tokenizer_config.json"] = {"tokenizer_class": "GPT2Tokenizer"}
    for name, change in changes.items():
        content = json.loads((merged / name).read_text()) | change
        (folder / name).unlink()
        (folder / name).write_text(json.dumps(content))
    return folder


def _reason(code: int, stderr: str) -> str:
    if code < 0:
        return f"llama.cpp's converter was ended by signal {-code}: give the pod more memory (resources.memory)."
    if _PRE_TOKENIZER in stderr:
        return "llama.cpp does not know the model's tokenizer (its BPE pre-tokenizer is none of a known family)."
    if unsupported := re.search(r"Model (\w+) is not supported", stderr):
        return f"no converter for the architecture {unsupported[1]} is shipped with the trainer."
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    return f"llama.cpp's converter refused the model: {lines[-1][:300] if lines else f'exit code {code}'}"


def _check(path: Path, merged: Path, *, kind: GgufType, tokenizer: Any) -> None:
    """Hold a file against the merged weights: each matrix's norm, the vocabulary, the stop token, the template."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    tokens = reader.get_field("tokenizer.ggml.tokens")
    stop = _value(reader, "tokenizer.ggml.eos_token_id")
    if tokens is None or len(tokens.data) < len(tokenizer):
        raise GgufRefusedError("the written vocabulary is smaller than the tokenizer's.")
    if stop is not None and tokenizer.eos_token_id is not None and stop != tokenizer.eos_token_id:
        raise GgufRefusedError(f"the written stop token is {stop}, the tokenizer's is {tokenizer.eos_token_id}.")
    template = _value(reader, "tokenizer.chat_template")
    if isinstance(tokenizer.chat_template, str) and template != tokenizer.chat_template:
        raise GgufRefusedError("the written chat template is not the tokenizer's.")
    if wrong := next(_wrong_matrices(reader, merged, tolerance=TOLERANCE[kind]), None):
        raise GgufRefusedError(f"the written weights are not the merged ones: {wrong}.")


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return field.contents() if field is not None else None


def _wrong_matrices(reader: Any, merged: Path, *, tolerance: float) -> Iterator[str]:
    """Yield matrices whose norm is not the merged one's. Rows may have been permuted, norms of layers shifted by one:
    so the norm of whole matrices is compared, and vectors are not.
    """
    import torch
    from gguf import quants

    written = {tensor.name: tensor for tensor in reader.tensors}
    names = _names_in_gguf(reader)
    for name, size in _matrix_norms(merged):
        tensor = written.get(names(name) or "")
        if tensor is None:  # an output head that is the embedding, or experts that are written as one
            continue
        found = _norm(torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type).astype("float32")))
        if not abs(found - size) <= tolerance * size:
            yield f"{name} has a norm of {size:.6g}, {tensor.name} of {found:.6g}"


def _names_in_gguf(reader: Any) -> Any:
    import gguf

    architecture = _value(reader, "general.architecture")
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    blocks = int(_value(reader, f"{architecture}.block_count") or 0)
    names = gguf.get_tensor_name_map(kinds[architecture], blocks)
    return lambda name: names.get_name(name, try_suffixes=(".weight", ".bias"))


def _matrix_norms(folder: Path) -> Iterator[tuple[str, float]]:
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if len(file.get_slice(name).get_shape()) > 1:
                    yield name, _norm(file.get_tensor(name))


def _norm(matrix: Any) -> float:
    """Return the norm, added up in float64: in float32 it is wrong by 0.2 % for 28 million numbers."""
    import torch

    return float(torch.linalg.vector_norm(matrix.float(), dtype=torch.float64))
