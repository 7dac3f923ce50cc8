"""The data set's files on this machine: one object, those below a prefix, or those that a pattern matches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import Use
from finetune_trainer.data.hub_files import PREFIX, hub_files
from finetune_trainer.data.patterns import matches, split_pattern
from finetune_trainer.data.read import COMPRESSED, SUFFIXES, DataFile, is_data
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.storage import Store, StoredObject, open_store
from finetune_trainer.storage.digest import sha256_of
from finetune_trainer.storage.folders import download_objects
from finetune_trainer.storage.https import download
from finetune_trainer.storage.local import local_path

KINDS = f"*{', *'.join(SUFFIXES)} (also with {', '.join(COMPRESSED)})"


def data_files(
    uri: str, folder: Path, *, field: str = "uri", revision: str | None = None, splits: Sequence[str] = ("train",)
) -> list[DataFile]:
    """Fetch the data into a folder, or use it where it lies; sorted by path. Revision and splits are the hub's.

    Raises DATASET_NOT_FOUND, naming the field of `dataset` that has the URI, and what storage or the hub raises.
    """
    if uri.startswith("https://"):
        return [_from_web(uri, folder, field)]
    if uri.startswith(PREFIX):
        return hub_files(uri, folder, revision=revision, splits=splits, field=field)
    store = open_store(uri, Use.DATASET)
    base, pattern = split_pattern(uri)
    found = _wanted(store.list(base), f"dataset.{field} {uri}", pattern)
    if not uri.startswith(("file://", "pvc://")):
        return _fetched(store, base, found, folder)
    root = local_path(base, Use.DATASET)
    return [DataFile(path := root / item.path, _name(base, item), sha256_of(path)) for item in found]


def data_digest(files: Sequence[DataFile]) -> str:
    """Return the sha256 of the data: of the one file, else of the lines "<sha256>  <name>"."""
    if len(files) == 1:
        return files[0].sha256
    return hashlib.sha256("".join(f"{file.sha256}  {file.name}\n" for file in files).encode()).hexdigest()


def _from_web(uri: str, folder: Path, field: str) -> DataFile:
    path = folder / "data"
    try:
        digest = download(uri, path)
    except NotFoundError as error:
        raise _nothing(f"dataset.{field} {uri}") from error
    return DataFile(path, uri.rpartition("/")[2], digest)


def _nothing(what: str) -> TrainerError:
    return TrainerError(ExitCode.DATASET_NOT_FOUND, f"Nothing lies at {what}: correct it or upload the data.")


def _wanted(found: list[StoredObject], what: str, pattern: str) -> list[StoredObject]:
    if not found:
        raise _nothing(what)
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
