"""Every store keeps the same promises: S3, Google's, Azure's, folders and claims are tested by the same sentences."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import Use
from finetune_trainer.errors import AlreadyExistsError, NotFoundError, TrainerError
from finetune_trainer.storage import Store, open_store
from finetune_trainer.storage.folders import download_folder, upload_folder

BUCKETS = {"s3": "bucket", "gs": "gcs_bucket", "az": "container"}


@pytest.fixture(params=[*BUCKETS, "file", "pvc"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty folder in each kind of storage."""
    if fixture := BUCKETS.get(request.param):
        return str(request.getfixturevalue(fixture))
    if request.param == "file":
        return f"file://{tmp_path}/place"
    monkeypatch.setenv("FINETUNE_CLAIMS", str(tmp_path / "claims"))
    (tmp_path / "claims" / "data").mkdir(parents=True)
    return "pvc://data/place"


@pytest.fixture
def store(place: str) -> Store:
    return open_store(place, Use.OUTPUT)


def test_what_is_written_is_read(store: Store, place: str) -> None:
    store.write(f"{place}/a/b.txt", b"first")
    store.write(f"{place}/a/b.txt", b"second")
    assert store.read(f"{place}/a/b.txt") == b"second"


def test_only_the_first_conditional_write_wins(store: Store, place: str) -> None:
    store.write(f"{place}/owner.json", b"mine", only_if_absent=True)
    with pytest.raises(AlreadyExistsError):
        store.write(f"{place}/owner.json", b"yours", only_if_absent=True)
    assert store.read(f"{place}/owner.json") == b"mine"


def test_nothing_there_is_said_by_its_uri(store: Store, place: str, tmp_path: Path) -> None:
    store.write(f"{place}/folder/file", b"x")
    for missing in (f"{place}/nothing", f"{place}/folder"):
        with pytest.raises(NotFoundError, match=missing):
            store.read(missing)
        with pytest.raises(NotFoundError, match=missing):
            store.download(missing, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_listing_has_the_objects_below_but_not_those_beside(store: Store, place: str) -> None:
    for name in ("data/b", "data/a/deep", "data.bak", "data2/c"):
        store.write(f"{place}/{name}", b"four")
    listed = store.list(f"{place}/data")
    assert [(item.path, item.size) for item in listed] == [("a/deep", 4), ("b", 4)]
    assert [item.path for item in store.list(f"{place}/data.bak")] == [""]
    assert store.list(f"{place}/dat") == []


def test_the_etag_changes_with_the_content(store: Store, place: str) -> None:
    store.write(f"{place}/x", b"one")
    before = store.list(f"{place}/x")[0].etag
    store.write(f"{place}/x", b"another")
    assert store.list(f"{place}/x")[0].etag != before


def test_upload_and_download_agree_on_the_sha256(store: Store, place: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 80_000  # 20 MB: several parts and ranges
    (tmp_path / "up").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    assert store.upload(tmp_path / "up", f"{place}/big") == digest
    assert store.download(f"{place}/big", tmp_path / "deep" / "down") == digest
    assert (tmp_path / "deep" / "down").read_bytes() == content
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["down"]


def test_an_empty_object_is_an_object(store: Store, place: str, tmp_path: Path) -> None:
    store.write(f"{place}/empty", b"")
    assert store.download(f"{place}/empty", tmp_path / "empty") == hashlib.sha256(b"").hexdigest()
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_folder_goes_there_and_back(store: Store, place: str, tmp_path: Path) -> None:
    for name in ("config.json", "deep/er/weights", "pickle.bin"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    seen: list[tuple[int, int]] = []
    sent = upload_folder(store, tmp_path / "folder", f"{place}/model")
    back = download_folder(
        store, f"{place}/model", tmp_path / "back", only=("*.json", "weights"), progress=lambda *at: seen.append(at)
    )
    assert [file.path for file in sent] == ["config.json", "deep/er/weights", "pickle.bin"]
    assert back == [file for file in sent if file.path != "pickle.bin"]
    assert (tmp_path / "back/deep/er/weights").read_bytes() == b"deep/er/weights"
    assert seen[-1] == (26, 26)


def test_deleting_takes_the_folder_and_leaves_the_neighbour(store: Store, place: str) -> None:
    for name in ("gone/a", "gone/b/c", "gone2"):
        store.write(f"{place}/{name}", b"x")
    store.delete(f"{place}/gone")
    store.delete(f"{place}/gone")
    assert [item.path for item in store.list(place)] == ["gone2"]


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("ftp://bucket/x", "use s3://, gs://, az://, pvc:// or file://"),
        ("/tmp/x", "use s3://, gs://, az://, pvc:// or file://"),
        ("file://relative/x", "file:///absolute/path"),
        ("pvc://claim/../../etc", "without .."),
        ("pvc://", "pvc://claim/path"),
        ("pvc://absent/x", "the claim 'absent' is not mounted"),
    ],
)
def test_a_uri_that_cannot_be_used_is_the_users_to_correct(uri: str, says: str) -> None:
    with pytest.raises(TrainerError, match=says) as caught:
        open_store(uri, Use.DATASET).write(uri, b"x")
    assert caught.value.code == ExitCode.CONFIG_INVALID
