"""Checkpoints in object storage: complete or not there.

A checkpoint is a folder; `checkpoint.json`, written last and only if absent, lists every file's size and sha256 and
thereby commits it. A later attempt takes the newest committed one whose files are what the list says, and the one
before it otherwise. Attempts write under prefixes of their own, so that a zombie cannot touch a later one's.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.model import Model
from finetune_contract.outcome import OutputFile
from finetune_contract.run_config import RunConfig
from finetune_trainer.errors import AlreadyExistsError, NotFoundError, TrainerError
from finetune_trainer.logs import log
from finetune_trainer.storage import Store
from finetune_trainer.storage.folders import download_folder, upload_folder

PATIENCE = 120.0
"""Seconds that storage may be away while training goes on."""
_FIRST_PAUSE = 2.0
_PLACE = re.compile(r"^attempt-(\d+)/step-(\d+)/(.+)$")


class CheckpointManifest(Model):
    """checkpoint.json: its presence means that the checkpoint is complete."""

    schema_version: int = 1
    job_uid: str
    config_hash: str
    attempt: int
    step: int
    identity: dict[str, str] = {}
    """What another run must have in common to go on from it (resume.py)."""
    files: tuple[OutputFile, ...]
    """Paths relative to the checkpoint's folder."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a checkpoint lies; later attempts are newer, whatever their step."""

    attempt: int
    step: int

    def uri(self, config: RunConfig) -> str:
        """Return the checkpoint's folder."""
        return paths.join(config.run_uri, paths.checkpoint_dir(self.attempt, self.step))


def store_checkpoint(
    folder: Path, place: Place, *, config: RunConfig, store: Store, identity: dict[str, str] | None = None
) -> None:
    """Upload a local folder and commit it. Raises AlreadyExistsError if another process did so at the same place."""
    uri = place.uri(config)
    store.delete(uri)  # what a killed process of this attempt may have left
    manifest = CheckpointManifest(
        job_uid=config.job.uid,
        config_hash=config.config_hash,
        attempt=place.attempt,
        step=place.step,
        identity=identity or {},
        files=tuple(upload_folder(store, folder, uri)),
    )
    store.write(paths.join(uri, paths.CHECKPOINT_MANIFEST), manifest.to_json().encode(), only_if_absent=True)


def restore_newest(folder: Path, *, config: RunConfig, store: Store) -> Place | None:
    """Fetch the newest good checkpoint into a folder; return where it lay, or None if there is none."""
    places = _places(config, store)
    for place in sorted((place for place, committed in places.items() if committed), reverse=True):
        problem = _restore(folder, place, config=config, store=store)
        if problem is None:
            return place
        log.warning("checkpoint of attempt %d, step %d is not used: %s", place.attempt, place.step, problem)
        shutil.rmtree(folder, ignore_errors=True)
    return None


def prune(*, keep: int, config: RunConfig, store: Store) -> None:
    """Delete all but the newest committed checkpoints, and what never was committed before them."""
    places = _places(config, store)
    committed = sorted((place for place, complete in places.items() if complete), reverse=True)
    if len(committed) < keep:
        return
    for place in places:
        if place < committed[keep - 1]:
            # The commit goes first: a deletion cut short must not leave a checkpoint that looks complete.
            store.delete(paths.join(place.uri(config), paths.CHECKPOINT_MANIFEST))
            store.delete(place.uri(config))


class CheckpointUploader:
    """Stores checkpoints in the background, one after the other, and rides out a storage that is away for a while."""

    def __init__(
        self,
        *,
        config: RunConfig,
        store: Store,
        identity: dict[str, str] | None = None,
        patience: float | None = None,
    ) -> None:
        self._config, self._store, self._identity = config, store, identity
        self._patience = PATIENCE if patience is None else patience
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._hurried = threading.Event()
        self._complained = False
        self.stored_step: int | None = None
        """Step of the last checkpoint that is safe."""

    def submit(self, folder: Path, step: int) -> None:
        """Store a folder, after the one before; the folder is removed when it is stored."""
        self.wait()
        place = Place(attempt=self._config.job.attempt, step=step)
        self._pending = self._pool.submit(self._store_patiently, folder, place)

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        if self._pending and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until what was submitted is safe. Raises STORAGE_UNAVAILABLE and the like."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        """Let the checkpoint under way be stored, whatever ended the run, with no more patience for lost storage."""
        self._hurried.set()
        self._pool.shutdown(wait=True)

    def _store_patiently(self, folder: Path, place: Place) -> None:
        deadline, pause = time.monotonic() + self._patience, _FIRST_PAUSE
        while True:
            try:
                return self._store_now(folder, place)
            except TrainerError as error:
                out_of_patience = self._hurried.is_set() or time.monotonic() + pause > deadline
                if error.code != ExitCode.STORAGE_UNAVAILABLE or out_of_patience:
                    raise
                log.warning("checkpoint of step %d is not stored yet, trying again: %s", place.step, error)
            self._hurried.wait(pause)
            pause = min(2 * pause, 30.0)

    def _store_now(self, folder: Path, place: Place) -> None:
        try:
            store_checkpoint(folder, place, config=self._config, store=self._store, identity=self._identity)
        except AlreadyExistsError as error:
            raise TrainerError(
                ExitCode.INTERNAL_ERROR, f"Another process stores checkpoints of attempt {place.attempt}."
            ) from error
        self.stored_step = place.step
        log.info("checkpoint of step %d stored", place.step)
        shutil.rmtree(folder, ignore_errors=True)
        self._prune()

    def _prune(self) -> None:
        try:
            prune(keep=self._config.spec.checkpoint.keep, config=self._config, store=self._store)
        except TrainerError as error:
            if error.code != ExitCode.STORAGE_ACCESS_DENIED:
                raise
            # What may be written may not always be deleted: a bucket with object lock, or rights to put alone.
            if not self._complained:
                log.warning("older checkpoints are not deleted, and go on taking space: %s", error)
            self._complained = True


def committed_below(uri: str, store: Store) -> list[str]:
    """Return the committed checkpoints at a URI, newest first: the one that it names, or those of the run there."""
    if any(item.path == paths.CHECKPOINT_MANIFEST for item in store.list(uri)):
        return [uri]
    folder = paths.join(uri, paths.CHECKPOINTS)
    found = sorted((place for place, complete in _places_in(folder, store).items() if complete), reverse=True)
    return [paths.join(uri, paths.checkpoint_dir(place.attempt, place.step)) for place in found]


def _places(config: RunConfig, store: Store) -> dict[Place, bool]:
    """Return every checkpoint folder of a run, and whether it is committed."""
    return _places_in(paths.join(config.run_uri, paths.CHECKPOINTS), store)


def _places_in(folder: str, store: Store) -> dict[Place, bool]:
    places: dict[Place, bool] = {}
    for item in store.list(folder):
        if match := _PLACE.match(item.path):
            place = Place(attempt=int(match[1]), step=int(match[2]))
            places[place] = places.get(place, False) or match[3] == paths.CHECKPOINT_MANIFEST
    return places


def _restore(folder: Path, place: Place, *, config: RunConfig, store: Store) -> str | None:
    """Fetch a checkpoint and return what is wrong with it, or None."""
    uri = place.uri(config)
    try:
        manifest = CheckpointManifest.model_validate_json(store.read(paths.join(uri, paths.CHECKPOINT_MANIFEST)))
    except (ValidationError, NotFoundError):
        return f"its {paths.CHECKPOINT_MANIFEST} cannot be read"
    if (manifest.job_uid, manifest.config_hash) != (config.job.uid, config.config_hash):
        return "it belongs to another configuration"
    return fetch_checkpoint(folder, uri, manifest, store)


def fetch_checkpoint(folder: Path, uri: str, manifest: CheckpointManifest, store: Store) -> str | None:
    """Fetch a checkpoint's files and return what is wrong with them, or None."""
    found = {file.path: file.sha256 for file in download_folder(store, uri, folder)}
    damaged = [file.path for file in manifest.files if found.get(file.path) != file.sha256]
    return f"{damaged[0]} is damaged or missing" if damaged else None
