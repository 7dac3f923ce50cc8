"""A model folder as transformers saves it: which files belong to it, and whether they are sound.

Damaged files are found here, by name, before a GPU is busy: a weight file says in its header how long it must be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
INDEX = "model.safetensors.index.json"
_CONFIGURATION = (CONFIG, GENERATION_CONFIG, "*.safetensors.index.json", "README.md")  # the card names the licence
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.*",
    "merges.txt",
    "*.model",
)
_WEIGHTS = "*.safetensors"
_COPIES = "consolidated*"  # Mistral's own format, beside the shards
_PICKLES = ("*.bin", "*.pt", "*.pth")
_TOKENIZER_BY_ITSELF = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_HEADER_AT_MOST = 100 << 20


def configuration_files(names: Iterable[str]) -> list[str]:
    """Return the names of configuration, tokenizer and chat template; files in subfolders belong to something else."""
    return [name for name in names if "/" not in name and _matches(name, (*_CONFIGURATION, *_TOKENIZER))]


def weight_files(names: Iterable[str], folder: Path) -> list[str]:
    """Return the names of the weight files: those of the index, if the folder has one, else all safetensors."""
    there = [name for name in names if "/" not in name and fnmatch(name, _WEIGHTS) and not fnmatch(name, _COPIES)]
    index = folder / INDEX
    if not index.is_file():
        return there
    wanted = sorted(set(map(str, _object(index).get("weight_map", {}).values())))
    if missing := sorted(set(wanted) - set(there)):
        raise _invalid(f"{INDEX} lists {missing[0]}, which is not there: upload all weight files")
    return wanted


def check_names(names: Iterable[str], uri: str) -> None:
    """Check that a listing holds a model. Raises MODEL_NOT_FOUND, MODEL_INVALID."""
    there = list(names)
    if not there:
        raise TrainerError(
            ExitCode.MODEL_NOT_FOUND, f"Nothing lies at model.uri {uri}: correct it or upload the model."
        )
    if CONFIG not in there:
        raise _invalid(f"{uri} has no {CONFIG}; it must be a folder as transformers saves it")
    if not any(name in there for name in _TOKENIZER_BY_ITSELF):
        raise _invalid(f"{uri} has no tokenizer (tokenizer.json); save it with tokenizer.save_pretrained")
    if not any(fnmatch(name, _WEIGHTS) for name in there):
        pickled = any(_matches(name, _PICKLES) for name in there)
        hint = "only pickled weights, which can run code: save it as safetensors" if pickled else "no safetensors"
        raise _invalid(f"{uri} has {hint}")


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json. Raises MODEL_INVALID."""
    config = _object(folder / CONFIG)
    if "model_type" not in config:
        raise _invalid(f"{CONFIG} has no model_type")
    if config.get("quantization_config"):
        raise _invalid(
            f"{CONFIG} has a quantization_config: these weights are quantised already. Name the model that they were "
            "made from; method QLoRA quantises it by itself"
        )
    return config


def stop_ids(folder: Path, config: dict[str, Any]) -> set[int]:
    """Return the tokens at which generation stops by itself."""
    path = folder / GENERATION_CONFIG
    found = _object(path).get("eos_token_id") if path.is_file() else None
    found = config.get("eos_token_id") if found is None else found
    return set(found) if isinstance(found, list) else set() if found is None else {int(found)}


def check_weights(folder: Path, names: Iterable[str]) -> None:
    """Check that each weight file is as long as its header says. Raises MODEL_INVALID, naming the file."""
    for name in names:
        _check_safetensors(folder / name)


def _check_safetensors(path: Path) -> None:
    """Compare the size with the header: 8 bytes of length, JSON with every tensor's place, then the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(b"version "):
            raise _invalid(f"{path.name} is a Git LFS pointer, not the weights: run git lfs pull and upload again")
        length = int.from_bytes(start, "little")
        if length > min(_HEADER_AT_MOST, size):
            raise _invalid(
                f"{path.name} is damaged or cut off: its header does not fit in {size} bytes; upload it again"
            )
        try:
            header = json.loads(file.read(length))
            end = max(
                (tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"), default=0
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _invalid(f"{path.name} is damaged: its header is not safetensors'; upload it again") from error
    if (wanted := 8 + length + end) != size:
        raise _invalid(f"{path.name} has {size} bytes, its header says {wanted}: it was cut off, upload it again")


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise _invalid(f"{path.name} is not JSON: upload it again") from error
    if not isinstance(value, dict):
        raise _invalid(f"{path.name} is not a JSON object: upload it again")
    return value


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _invalid(what: str) -> TrainerError:
    return TrainerError(ExitCode.MODEL_INVALID, f"The model folder cannot be used: {what}.")
