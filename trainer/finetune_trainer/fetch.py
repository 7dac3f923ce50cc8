"""The base model on this machine: fetched once into a cache by content, resumable, complete or not there.

A cache folder's name carries the URI and the revision, so a changed model gets a new folder. Files arrive in a folder
beside it, which is renamed when all are there; a process that is killed leaves that folder, and the next one goes on.
Folders of this machine (file://, pvc://) are used in place.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import RunConfig, Use
from finetune_trainer.environment import Environment
from finetune_trainer.errors import TrainerError
from finetune_trainer.logs import log
from finetune_trainer.model.cache import MARKER, PARTIAL, hold, make_room
from finetune_trainer.model.folder import check_names, check_weights, configuration_files, read_config, weight_files
from finetune_trainer.storage import Store, StoredObject, open_store
from finetune_trainer.storage.hub import HubCommit, find_model
from finetune_trainer.storage.local import local_path

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A model folder to load from."""

    path: Path
    revision: str
    """The hub's commit, or a hash over names, sizes and ETags of the files in storage."""


class _Source(Protocol):
    """Where files come from."""

    def download(self, names: Iterable[str], into: Path) -> None:
        """Fetch files into a folder; those that are there already are not fetched again."""


@dataclass(frozen=True, slots=True)
class _Model:
    """What lies at model.uri."""

    uri: str
    revision: str
    sizes: dict[str, int]
    source: _Source


def fetch_model(config: RunConfig, env: Environment, *, weights: bool) -> FetchedModel:
    """Return the model's folder: all of it, or configuration and tokenizer only."""
    uri = config.spec.model.uri
    model = _find_on_hub(config) if uri.startswith("hf://") else _find_in_storage(uri)
    check_names(model.sizes, uri)
    if uri.startswith(("file://", "pvc://")):
        folder = local_path(uri, Use.MODEL)
    else:
        folder = _cached(model, env.cache / "models", weights=weights, limit=config.cache_bytes)
    read_config(folder)
    if weights:
        check_weights(folder, weight_files(model.sizes, folder))
    return FetchedModel(path=folder, revision=model.revision)


def _find_on_hub(config: RunConfig) -> _Model:
    found: HubCommit = find_model(config.spec.model.uri, config.spec.model.revision)
    sizes = {file.path: file.size for file in found.files}
    return _Model(config.spec.model.uri, found.commit, sizes, found)


def _find_in_storage(uri: str) -> _Model:
    store = open_store(uri, Use.MODEL)
    objects = [item for item in store.list(uri) if item.path]
    lines = "".join(f"{item.path} {item.size} {item.etag}\n" for item in objects)
    revision = hashlib.sha256(lines.encode()).hexdigest()
    return _Model(uri, revision, {item.path: item.size for item in objects}, _StoredFiles(store, uri, objects))


@dataclass(frozen=True, slots=True)
class _StoredFiles:
    """A model folder in object storage."""

    store: Store
    uri: str
    objects: list[StoredObject]

    def download(self, names: Iterable[str], into: Path) -> None:
        """Fetch files into a folder; those that are there already are not fetched again."""
        from finetune_trainer.storage.folders import download_objects

        wanted = set(names)
        missing = [item for item in self.objects if item.path in wanted and not (into / item.path).is_file()]
        download_objects(self.store, self.uri, missing, into)


def _cached(model: _Model, root: Path, *, weights: bool, limit: int | None) -> Path:
    """Return the complete folder, filling it first if need be; one process at a time does that.

    This process keeps the folder from being removed for as long as it lives.
    """
    whole, part = _folder(model, root, weights=True), _folder(model, root, weights=False)
    for folder in (whole,) if weights else (whole, part):
        hold(folder)
        if _is_complete(folder):
            return folder
    target = whole if weights else part
    with FileLock(f"{target}.lock"):
        if not _is_complete(target):
            _fill(model, target, weights=weights, limit=limit)
    return target


def _folder(model: _Model, root: Path, *, weights: bool) -> Path:
    key = hashlib.sha256(f"{model.uri}\n{model.revision}".encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", model.uri.partition("://")[2])[-64:].strip("-.")
    return root / f"{readable}-{key}{'' if weights else '-config'}"


def _is_complete(folder: Path) -> bool:
    """Whether the marker is there and no file has changed its size since."""
    try:
        sizes: dict[str, int] = json.loads((folder / MARKER).read_bytes())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _fill(model: _Model, target: Path, *, weights: bool, limit: int | None) -> None:
    """Fetch into a folder beside the target, then put it in place."""
    partial = target.with_name(f"{target.name}{PARTIAL}")
    partial.mkdir(exist_ok=True)
    names = configuration_files(model.sizes)
    model.source.download(names, partial)
    if weights:
        shards = weight_files(model.sizes, partial)
        missing = sum(model.sizes[name] for name in shards) - _begun(model, partial)
        if limit is not None:
            make_room(target.parent, needed=missing, limit=limit)
        _require_space(missing, partial)
        model.source.download(shards, partial)
        check_weights(partial, shards)
        names += shards
    sizes = {name: (partial / name).stat().st_size for name in names}
    (partial / MARKER).write_text(json.dumps(sizes))
    shutil.rmtree(target, ignore_errors=True)  # one that was damaged
    partial.rename(target)
    log.info("model: %d files, %.2f GiB fetched from %s", len(sizes), sum(sizes.values()) / _GIB, model.uri)


def _begun(model: _Model, folder: Path) -> int:
    """Return the bytes of weights that an earlier process has fetched already."""
    configuration = set(configuration_files(model.sizes))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name not in configuration)


def _require_space(missing: int, folder: Path) -> None:
    """Raise DISK_FULL before the download rather than at its end."""
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise TrainerError(
            ExitCode.DISK_FULL,
            f"{missing / _GIB:.1f} GiB of the model are still to be fetched, the cache volume has {free / _GIB:.1f} "
            "GiB left: raise resources.ephemeralStorage, or the cache volume of the profile.",
        )
