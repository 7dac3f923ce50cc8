"""The data set's files on this machine: one object, or every *.jsonl below a prefix."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import Use
from finetune_trainer.data.read import DataFile
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import Store, StoredObject, open_store
from finetune_trainer.storage.digest import sha256_of
from finetune_trainer.storage.folders import download_objects
from finetune_trainer.storage.local import local_path

SUFFIX = ".jsonl"


def data_files(uri: str, folder: Path) -> list[DataFile]:
    """Fetch the data into a folder, or use it where it lies; sorted by path. Raises DATASET_NOT_FOUND."""
    store = open_store(uri, Use.DATASET)
    found = _wanted(store, uri)
    if uri.startswith("s3://"):
        return _fetched(store, uri, found, folder)
    root = local_path(uri, Use.DATASET)
    return [DataFile(path := root / item.path, _name(uri, item), sha256_of(path)) for item in found]


def data_digest(files: Sequence[DataFile]) -> str:
    """Return the sha256 of the data: of the one file, else of the lines "<sha256>  <name>"."""
    if len(files) == 1:
        return files[0].sha256
    return hashlib.sha256("".join(f"{file.sha256}  {file.name}\n" for file in files).encode()).hexdigest()


def _wanted(store: Store, uri: str) -> list[StoredObject]:
    found = store.list(uri)
    if not found:
        raise TrainerError(
            ExitCode.DATASET_NOT_FOUND, f"Nothing lies at dataset.uri {uri}: correct it or upload the data."
        )
    wanted = [item for item in found if not item.path or item.path.endswith(SUFFIX)]
    if not wanted:
        raise TrainerError(
            ExitCode.DATASET_NOT_FOUND,
            f"dataset.uri {uri} holds {len(found)} objects, none of them *{SUFFIX} (the first is {found[0].path}): "
            "write the data as JSON Lines.",
        )
    return wanted


def _fetched(store: Store, uri: str, found: list[StoredObject], folder: Path) -> list[DataFile]:
    if not found[0].path:
        path = folder / "data.jsonl"
        return [DataFile(path, _name(uri, found[0]), store.download(uri, path))]
    stored = download_objects(store, uri, found, folder)
    return [DataFile(folder / file.path, file.path, file.sha256) for file in stored]


def _name(uri: str, item: StoredObject) -> str:
    """Return how messages call the file: its path below the URI, or its own name."""
    return item.path or paths.join(uri).rpartition("/")[2]
