"""Data sets of the hub, on the fake hub: which files a URI stands for, with which token, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_contract.dataset_spec import DatasetSource
from finetune_contract.exit_codes import ExitCode
from finetune_trainer.data.files import data_files
from finetune_trainer.data.parts import data_parts, revisions_of_parts
from finetune_trainer.errors import TrainerError
from tests.support.datasets import chats, lines, parquet
from tests.support.hub import TOKEN, FakeHub, running

NAME = "team/questions"
URI = f"hf://datasets/{NAME}"
FILES = (
    "README.md",
    "dataset_infos.json",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/validation-00000-of-00001.parquet",
    "data/test-00000-of-00001.parquet",
    "extra/hard.jsonl",
    "extra/easy.jsonl",
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running(FakeHub(NAME, tmp_path / "hub", kind="datasets")) as served:
        put(served, *FILES)
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield served


def put(hub: FakeHub, *files: str) -> None:
    for name in files:
        (path := hub.folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(parquet(chats(3)) if name.endswith(".parquet") else lines(chats(3)))


def names(uri: str, folder: Path, **settings: str) -> list[str]:
    (part,) = data_parts(DatasetSource.model_validate({"uri": uri, **settings}), folder)
    assert all(file.path.is_file() for file in part.files)
    return [file.name for file in part.files]


def refusal(uri: str, folder: Path, revision: str | None = None) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        data_files(uri, folder, revision=revision)
    return caught.value


@pytest.mark.parametrize(
    ("path", "split", "chosen"),
    [
        ("", {}, FILES[2:4]),
        ("", {"split": "test"}, FILES[5:6]),
        ("/", {"split": "validation"}, FILES[4:5]),
        ("/data", {}, FILES[2:4]),
        ("/extra/", {}, ("extra/easy.jsonl", "extra/hard.jsonl")),
        ("/extra/hard.jsonl", {}, ("extra/hard.jsonl",)),
        ("/data/t*-00000-*.parquet", {}, ("data/test-00000-of-00001.parquet", "data/train-00000-of-00002.parquet")),
        ("/**/*.jsonl", {}, ("extra/easy.jsonl", "extra/hard.jsonl")),
    ],
    ids=[
        "train",
        "test",
        "validation",
        "folder",
        "folder without splits",
        "file",
        "pattern",
        "pattern through folders",
    ],
)
def test_what_a_uri_stands_for(
    hub: FakeHub, tmp_path: Path, path: str, split: dict[str, str], chosen: tuple[str, ...]
) -> None:
    assert names(f"{URI}{path}", tmp_path / "fetched", **split) == list(chosen)
    assert sorted(hub.downloads) == sorted(chosen)


def test_a_given_validation_set_is_the_split_of_that_name(hub: FakeHub, tmp_path: Path) -> None:
    dataset = DatasetSource.model_validate({"uri": URI, "validation": {"uri": URI, "revision": hub.commit}})
    train, validation = data_parts(dataset, tmp_path / "fetched")
    assert [file.name for file in train.files] == list(FILES[2:4])
    assert [file.name for file in validation.files] == [f"validation {FILES[4]}"]
    assert revisions_of_parts([train, validation]) == hub.commit
    (hub.folder / FILES[4]).unlink()
    assert [file.name for file in data_parts(dataset, tmp_path / "again")[1].files] == [f"validation {FILES[5]}"]


def test_without_names_of_splits_all_is_for_training(hub: FakeHub, tmp_path: Path) -> None:
    for name in FILES[2:5]:
        (hub.folder / name).unlink()
    for name in FILES[6:]:
        (hub.folder / name).unlink()
    put(hub, "data/part-0.parquet", "data/trained.parquet")
    assert names(URI, tmp_path / "fetched") == ["data/part-0.parquet", "data/trained.parquet"]


def test_subsets_are_not_mixed_unasked(hub: FakeHub, tmp_path: Path) -> None:
    put(hub, "small/train.jsonl", "large/train.jsonl")
    error = refusal(URI, tmp_path)
    assert error.code == ExitCode.CONFIG_INVALID
    assert "has data in several folders (data, large, small), which may be different subsets: name one" in error.message
    assert names(f"{URI}/small", tmp_path / "fetched") == ["small/train.jsonl"]


@pytest.mark.parametrize("uri", [f"{URI}/nothing", f"{URI}/data/*.csv", f"{URI}/README.txt"])
@pytest.mark.usefixtures("hub")
def test_no_such_file(tmp_path: Path, uri: str) -> None:
    error = refusal(uri, tmp_path)
    assert error.code == ExitCode.DATASET_NOT_FOUND
    assert (
        f"dataset.uri {uri}: none of the repository's files is the data meant (there are: README.md," in error.message
    )


def test_a_split_that_nobody_has(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="name a file, a folder or a pattern"):
        names(URI, tmp_path, split="holdout")
    assert hub.downloads == []


@pytest.mark.usefixtures("hub")
def test_a_revision_or_data_set_that_is_not_there(tmp_path: Path) -> None:
    error = refusal(URI, tmp_path, revision="v9")
    assert error.code == ExitCode.DATASET_NOT_FOUND
    assert error.message == f"The dataset {NAME} has no revision 'v9': correct dataset.revision."
    error = refusal("hf://datasets/team/other", tmp_path)
    assert error.code == ExitCode.DATASET_NOT_FOUND
    assert "There is no dataset team/other at" in error.message
    assert "HF_TOKEN in the Secret of dataset.secretRef" in error.message


def test_a_gated_data_set_wants_the_data_sets_own_token(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = True
    monkeypatch.setenv("MODEL_HF_TOKEN", TOKEN)
    error = refusal(URI, tmp_path / "refused")
    assert error.code == ExitCode.HUB_ACCESS_DENIED
    assert "dataset.secretRef (here DATASET_HF_TOKEN)" in error.message
    assert TOKEN not in error.message
    monkeypatch.setenv("DATASET_HF_TOKEN", TOKEN)
    assert names(URI, tmp_path / "fetched") == list(FILES[2:4])


def test_a_damaged_file_is_found_out(hub: FakeHub, tmp_path: Path) -> None:
    (hub.folder / "extra" / "hard.jsonl").write_bytes(lines(chats(2000)))
    hub.damage = True
    error = refusal(f"{URI}/extra/hard.jsonl", tmp_path)
    assert error.code == ExitCode.HUB_UNAVAILABLE
    assert "extra/hard.jsonl of team/questions arrived damaged (its hash differs)" in error.message
