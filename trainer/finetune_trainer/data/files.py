"""The data set's files on this machine: one object, those below a prefix, or those that a pattern matches."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import Use
from finetune_trainer.data.read import COMPRESSED, SUFFIXES, DataFile, is_data
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import Store, StoredObject, open_store
from finetune_trainer.storage.digest import sha256_of
from finetune_trainer.storage.folders import download_objects
from finetune_trainer.storage.local import local_path

KINDS = f"*{', *'.join(SUFFIXES)} (also with {', '.join(COMPRESSED)})"


def data_files(uri: str, folder: Path, *, field: str = "uri") -> list[DataFile]:
    """Fetch the data into a folder, or use it where it lies; sorted by path. Raises DATASET_NOT_FOUND, naming the
    field of `dataset` that has the URI.
    """
    store = open_store(uri, Use.DATASET)
    base, pattern = split_pattern(uri)
    found = _wanted(store.list(base), f"dataset.{field} {uri}", pattern)
    if uri.startswith("s3://"):
        return _fetched(store, base, found, folder)
    root = local_path(base, Use.DATASET)
    return [DataFile(path := root / item.path, _name(base, item), sha256_of(path)) for item in found]


def data_digest(files: Sequence[DataFile]) -> str:
    """Return the sha256 of the data: of the one file, else of the lines "<sha256>  <name>"."""
    if len(files) == 1:
        return files[0].sha256
    return hashlib.sha256("".join(f"{file.sha256}  {file.name}\n" for file in files).encode()).hexdigest()


def split_pattern(uri: str) -> tuple[str, str]:
    """Split a URI before its first part with a wildcard: what to list, and what to match below it."""
    scheme, _, rest = uri.partition("://")
    parts = rest.split("/")
    first = next((number for number, part in enumerate(parts) if set("*[") & set(part)), len(parts))
    return f"{scheme}://{'/'.join(parts[:first])}", "/".join(parts[first:])


def matches(pattern: str, name: str) -> bool:
    """Whether a path matches: * and [a-z] stay within a folder, ** goes through any."""
    return re.fullmatch("".join(map(_as_regex, re.findall(r"\*\*/|\*\*|\*|\[[^]]+\]|.", pattern))), name) is not None


def _as_regex(piece: str) -> str:
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    if piece.startswith("[") and len(piece) > 1:
        return "[" + ("^" if piece[1] in "!^" else "") + re.escape(piece[1:-1].lstrip("!^")).replace(r"\-", "-") + "]"
    return known.get(piece) or re.escape(piece)


def _wanted(found: list[StoredObject], what: str, pattern: str) -> list[StoredObject]:
    if not found:
        raise TrainerError(ExitCode.DATASET_NOT_FOUND, f"Nothing lies at {what}: correct it or upload the data.")
    if pattern:
        wanted = [item for item in found if matches(pattern, item.path)]
        why = f"none of the {len(found)} objects beside it matches (the first is {found[0].path}): correct the pattern"
    else:
        wanted = [item for item in found if not item.path or is_data(item.path)]
        why = f"holds {len(found)} objects, none of them {KINDS}; the first is {found[0].path}: name the data so"
    if not wanted:
        raise TrainerError(ExitCode.DATASET_NOT_FOUND, f"{what}: {why}.")
    return wanted


def _fetched(store: Store, uri: str, found: list[StoredObject], folder: Path) -> list[DataFile]:
    if not found[0].path:
        name = _name(uri, found[0])
        path = folder / "data"
        return [DataFile(path, name, store.download(uri, path))]
    stored = download_objects(store, uri, found, folder)
    return [DataFile(folder / file.path, file.path, file.sha256) for file in stored]


def _name(uri: str, item: StoredObject) -> str:
    """Return how messages call the file: its path below the URI, or its own name."""
    return item.path or paths.join(uri).rpartition("/")[2]
