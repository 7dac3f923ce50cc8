"""Checkpoints in storage: which one a later attempt takes, which are kept, and what happens when storage is away."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import RunConfig, Use
from finetune_trainer.checkpoints import checkpoint
from finetune_trainer.checkpoints.checkpoint import CheckpointUploader, Place, prune, restore_newest, store_checkpoint
from finetune_trainer.errors import AlreadyExistsError, TrainerError
from finetune_trainer.storage import Store, open_store
from tests.support.prepared import make_config


@pytest.fixture(params=["file", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/out"
    bucket: str = request.getfixturevalue("bucket")
    return bucket


@pytest.fixture
def config(output: str) -> RunConfig:
    return make_config(output_uri=output, model_uri="file:///nowhere")


@pytest.fixture
def store(config: RunConfig) -> Store:
    return open_store(config.spec.output.uri, Use.OUTPUT)


def write_folder(folder: Path, text: str) -> Path:
    (folder / "best").mkdir(parents=True)
    (folder / "weights").write_text(text)
    (folder / "best" / "weights").write_text(f"best of {text}")
    return folder


def store_one(place: Place, tmp_path: Path, config: RunConfig, store: Store) -> None:
    folder = write_folder(tmp_path / f"made-{place.attempt}-{place.step}", f"{place.attempt}/{place.step}")
    store_checkpoint(folder, place, config=config, store=store)


def committed(config: RunConfig, store: Store) -> set[Place]:
    return {place for place, complete in checkpoint._places(config, store).items() if complete}


def test_the_newest_attempt_wins_over_the_highest_step(tmp_path: Path, config: RunConfig, store: Store) -> None:
    for place in (Place(1, 30), Place(2, 10), Place(2, 20)):
        store_one(place, tmp_path, config, store)

    assert restore_newest(tmp_path / "restored", config=config, store=store) == Place(2, 20)
    assert (tmp_path / "restored" / "weights").read_text() == "2/20"
    assert (tmp_path / "restored" / "best" / "weights").read_text() == "best of 2/20"


def test_without_checkpoints_nothing_is_restored(tmp_path: Path, config: RunConfig, store: Store) -> None:
    assert restore_newest(tmp_path / "restored", config=config, store=store) is None


def test_a_half_written_checkpoint_is_ignored(tmp_path: Path, config: RunConfig, store: Store) -> None:
    store_one(Place(1, 10), tmp_path, config, store)
    store_one(Place(1, 20), tmp_path, config, store)
    store.delete(paths.join(Place(1, 20).uri(config), paths.CHECKPOINT_MANIFEST))

    assert restore_newest(tmp_path / "restored", config=config, store=store) == Place(1, 10)


@pytest.mark.parametrize("damage", ["flipped", "missing", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, config: RunConfig, store: Store, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        store_one(Place(1, step), tmp_path, config, store)
    newest = Place(1, 20).uri(config)
    match damage:
        case "flipped":
            content = bytearray(store.read(paths.join(newest, "weights")))
            content[0] ^= 1
            store.write(paths.join(newest, "weights"), bytes(content))
        case "missing":
            store.delete(paths.join(newest, "best"))
        case "manifest":
            store.write(paths.join(newest, paths.CHECKPOINT_MANIFEST), b"{")

    assert restore_newest(tmp_path / "restored", config=config, store=store) == Place(1, 10)
    assert (tmp_path / "restored" / "weights").read_text() == "1/10"
    assert "step 20 is not used" in caplog.text


def test_a_checkpoint_of_another_configuration_is_not_taken(tmp_path: Path, config: RunConfig, store: Store) -> None:
    store_one(Place(1, 10), tmp_path, config.model_copy(update={"config_hash": "other"}), store)

    assert restore_newest(tmp_path / "restored", config=config, store=store) is None


def test_the_newest_are_kept_over_all_attempts(tmp_path: Path, config: RunConfig, store: Store) -> None:
    for place in (Place(1, 10), Place(1, 20), Place(1, 30), Place(2, 30)):
        store_one(place, tmp_path, config, store)
    store.delete(paths.join(Place(1, 20).uri(config), paths.CHECKPOINT_MANIFEST))

    prune(keep=2, config=config, store=store)

    assert checkpoint._places(config, store) == {Place(1, 30): True, Place(2, 30): True}


def test_what_a_killed_process_left_at_the_same_place_is_replaced(
    tmp_path: Path, config: RunConfig, store: Store
) -> None:
    uri = Place(1, 10).uri(config)
    store.write(paths.join(uri, "stale"), b"left over")
    store_one(Place(1, 10), tmp_path, config, store)

    assert restore_newest(tmp_path / "restored", config=config, store=store) == Place(1, 10)
    assert not (tmp_path / "restored" / "stale").exists()


class Flaky:
    """A store that is away for its first writes."""

    def __init__(self, store: Store, *, failures: float) -> None:
        self._store, self.failures = store, failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def upload(self, path: Path, uri: str) -> str:
        if self.failures > 0:
            self.failures -= 1
            raise TrainerError(ExitCode.STORAGE_UNAVAILABLE, "The endpoint does not answer.")
        return self._store.upload(path, uri)


def uploader(config: RunConfig, store: Any, *, patience: float = 5.0) -> CheckpointUploader:
    return CheckpointUploader(config=config, store=store, patience=patience)


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_FIRST_PAUSE", 0.01)


def test_a_stored_checkpoint_leaves_the_disk(tmp_path: Path, config: RunConfig, store: Store) -> None:
    folder = write_folder(tmp_path / "checkpoint-10", "ten")
    background = uploader(config, store)

    background.submit(folder, 10)
    background.wait()

    assert background.stored_step == 10
    assert not folder.exists()
    background.close()


def test_storage_that_comes_back_is_waited_for(tmp_path: Path, config: RunConfig, store: Store) -> None:
    flaky = Flaky(store, failures=3)
    background = uploader(config, flaky)

    background.submit(write_folder(tmp_path / "checkpoint-10", "ten"), 10)
    background.wait()

    assert (flaky.failures, background.stored_step) == (0, 10)
    assert committed(config, store) == {Place(1, 10)}
    background.close()


def test_storage_that_stays_away_ends_the_run(tmp_path: Path, config: RunConfig, store: Store) -> None:
    background = uploader(config, Flaky(store, failures=float("inf")), patience=0.1)

    background.submit(write_folder(tmp_path / "checkpoint-10", "ten"), 10)
    with pytest.raises(TrainerError) as failure:
        background.wait()

    assert failure.value.code is ExitCode.STORAGE_UNAVAILABLE
    assert background.stored_step is None
    background.close()


def test_training_hears_of_a_failed_upload_at_its_next_step(tmp_path: Path, config: RunConfig, store: Store) -> None:
    background = uploader(config, Flaky(store, failures=float("inf")), patience=0.05)
    background.submit(write_folder(tmp_path / "checkpoint-10", "ten"), 10)

    with pytest.raises(TrainerError):
        _train_on(background)
    background.close()


def _train_on(background: CheckpointUploader) -> None:
    for _ in range(1000):
        background.check()
        time.sleep(0.01)


def test_two_processes_of_one_attempt_do_not_mix(tmp_path: Path, config: RunConfig, store: Store) -> None:
    class Twin(Flaky):
        """Another process commits while this one uploads."""

        def write(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> None:
            self._store.write(uri, b"{}")
            self._store.write(uri, data, only_if_absent=only_if_absent)

    folder = write_folder(tmp_path / "checkpoint-10", "ten")
    with pytest.raises(AlreadyExistsError):
        store_checkpoint(folder, Place(1, 10), config=config, store=Twin(store, failures=0))  # type: ignore[arg-type]


def test_a_bucket_that_deletes_nothing_keeps_all_checkpoints(
    tmp_path: Path, config: RunConfig, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    class Locked(Flaky):
        """Object lock, or credentials that may put and get alone."""

        def delete(self, uri: str) -> None:
            if self._store.list(uri):
                raise TrainerError(ExitCode.STORAGE_ACCESS_DENIED, "Access denied.")

    background = uploader(config, Locked(store, failures=0))

    for step in (10, 20, 30, 40):
        background.submit(write_folder(tmp_path / f"checkpoint-{step}", str(step)), step)
    background.wait()

    assert committed(config, store) == {Place(1, step) for step in (10, 20, 30, 40)}
    assert caplog.text.count("older checkpoints are not deleted") == 1
    background.close()
