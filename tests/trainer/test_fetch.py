"""Fetching a model: once, complete or not there, checked; and how each damaged or missing one is named."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import Use
from finetune_trainer.errors import TrainerError
from finetune_trainer.fetch import MARKER, FetchedModel, fetch_model
from finetune_trainer.storage import open_store
from finetune_trainer.storage.folders import upload_folder
from tests.support.hub import TOKEN, FakeHub, running
from tests.support.models import tiny_llama
from tests.support.preparing import machine, run_config

NAME = "team/tiny-llama"


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A copy to be damaged, with files beside the model that are none of its own."""
    folder = shutil.copytree(original, tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "consolidated.safetensors").write_bytes(b"in another format")
    (folder / "README.md").write_text("# A model")
    return folder


@pytest.fixture
def hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running(FakeHub(NAME, model)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield served


def fetch(uri: str, folder: Path, *, weights: bool = True, revision: str | None = None) -> FetchedModel:
    return fetch_model(run_config("file:///unused", model=uri, revision=revision), machine(folder), weights=weights)


def refusal(uri: str, folder: Path, revision: str | None = None) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        fetch(uri, folder, revision=revision)
    return caught.value


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


CONFIGURATION = {
    "README.md",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}


@pytest.fixture(params=["s3", "hub"])
def uri(request: pytest.FixtureRequest, model: Path) -> str:
    """The model in each kind of place that it is fetched from."""
    if request.param == "hub":
        request.getfixturevalue("hub")
        return f"hf://{NAME}"
    bucket = str(request.getfixturevalue("bucket"))
    upload_folder(open_store(bucket, Use.MODEL), model, f"{bucket}/model")
    return f"{bucket}/model"


def test_only_what_belongs_to_the_model_is_fetched(uri: str, model: Path, tmp_path: Path) -> None:
    fetched = fetch(uri, tmp_path)
    assert names(fetched.path) == CONFIGURATION | {"model.safetensors", MARKER}
    assert (fetched.path / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_prepare_needs_no_weights_and_sees_the_same_revision(uri: str, tmp_path: Path) -> None:
    without, with_weights = fetch(uri, tmp_path, weights=False), fetch(uri, tmp_path)
    assert names(without.path) == CONFIGURATION | {MARKER}
    assert without.revision == with_weights.revision
    assert fetch(uri, tmp_path, weights=False).path == with_weights.path


def test_a_model_in_the_cache_is_used_until_it_is_damaged(uri: str, hub: FakeHub, tmp_path: Path) -> None:
    first = fetch(uri, tmp_path)
    hub.downloads.clear()
    assert fetch(uri, tmp_path) == first
    assert hub.downloads == []
    (first.path / "model.safetensors").write_bytes(b"cut off")
    assert fetch(uri, tmp_path) == first
    assert (first.path / "model.safetensors").stat().st_size > 1000


def test_two_jobs_at_once_fetch_once(hub: FakeHub, tmp_path: Path) -> None:
    found: list[FetchedModel] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(f"hf://{NAME}", tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert hub.downloads.count("model.safetensors") == 1


def test_a_changed_model_gets_a_folder_of_its_own(bucket: str, model: Path, tmp_path: Path) -> None:
    store = open_store(bucket, Use.MODEL)
    upload_folder(store, model, f"{bucket}/model")
    before = fetch(f"{bucket}/model", tmp_path)
    (model / "generation_config.json").write_text("{}")
    store.upload(model / "generation_config.json", f"{bucket}/model/generation_config.json")
    after = fetch(f"{bucket}/model", tmp_path)
    assert before.path != after.path
    assert before.revision != after.revision


def test_a_fetch_that_was_killed_goes_on(bucket: str, model: Path, tmp_path: Path) -> None:
    upload_folder(open_store(bucket, Use.MODEL), model, f"{bucket}/model")
    done = fetch(f"{bucket}/model", tmp_path).path
    (done / MARKER).unlink()
    (done / "model.safetensors").unlink()
    partial = done.rename(done.with_name(f"{done.name}.partial"))
    kept = (partial / "tokenizer.json").stat().st_ino
    assert fetch(f"{bucket}/model", tmp_path).path == done
    assert (done / "tokenizer.json").stat().st_ino == kept
    assert not partial.exists()


def test_a_broken_connection_to_the_hub_goes_on_in_the_middle(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    hub.break_after = 11 << 20  # the client writes pieces of 10 MB
    fetched = fetch(f"hf://{NAME}", tmp_path)
    assert (fetched.path / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert len(hub.ranges) == 1
    assert not (fetched.path / ".cache").exists()


def test_the_revision_of_the_hub_is_the_commit(hub: FakeHub, tmp_path: Path) -> None:
    hub.branch = "v2"
    for revision in ("v2", hub.commit):
        assert fetch(f"hf://{NAME}", tmp_path, revision=revision).revision == hub.commit


def test_folders_of_this_machine_are_used_in_place(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CLAIMS", str(tmp_path))
    for uri in (f"file://{model}", "pvc://model"):
        assert fetch(uri, tmp_path).path == model
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("setting", "code", "says"),
    [
        ({"gated": True}, ExitCode.HUB_ACCESS_DENIED, "it is gated: accept its licence on the hub"),
        ({"branch": "other"}, ExitCode.MODEL_NOT_FOUND, "has no revision 'main': correct model.revision"),
        ({"name": "team/other"}, ExitCode.MODEL_NOT_FOUND, f"There is no model {NAME} at http://127.0.0.1"),
        ({"down": True}, ExitCode.HUB_UNAVAILABLE, "could not be used after 3 attempts: it answered 503"),
        ({"damage": True}, ExitCode.HUB_UNAVAILABLE, "arrived damaged (its hash differs)"),
    ],
    ids=["gated", "no such revision", "no such model", "down", "damaged on the way"],
)
def test_what_the_hub_refuses(
    *, hub: FakeHub, tmp_path: Path, setting: dict[str, object], code: ExitCode, says: str
) -> None:
    for name, value in setting.items():
        setattr(hub, name, value)
    error = refusal(f"hf://{NAME}", tmp_path)
    assert error.code == code
    assert says in error.message


def test_a_gated_model_opens_to_the_models_own_token(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    error = refusal(f"hf://{NAME}", tmp_path)
    assert error.code == ExitCode.HUB_ACCESS_DENIED
    assert "hf_of_somebody_else" not in error.message
    monkeypatch.setenv("MODEL_HF_TOKEN", TOKEN)
    assert fetch(f"hf://{NAME}", tmp_path).revision == hub.commit


def test_a_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = refusal(f"hf://{NAME}", tmp_path)
    assert error.code == ExitCode.HUB_UNAVAILABLE
    assert "http://127.0.0.1:9" in error.message


def test_a_name_that_no_model_has(tmp_path: Path) -> None:
    error = refusal("hf://one/two/three", tmp_path)
    assert error.code == ExitCode.CONFIG_INVALID
    assert "write hf://organisation/name" in error.message


def damage(folder: Path, name: str, content: bytes | None) -> None:
    """Replace a file, or remove it."""
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", None, "has no config.json; it must be a folder as transformers saves it"),
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"{}", "config.json has no model_type"),
        (
            "config.json",
            b'{"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes"}}',
            "config.json has a quantization_config: these weights are quantised already. Name the model that they were",
        ),
        ("tokenizer.json", None, "has no tokenizer (tokenizer.json)"),
        ("model.safetensors", b"", "model.safetensors is damaged: its header is not safetensors'"),
        (
            "model.safetensors",
            b"\xff" * 16,
            "model.safetensors is damaged or cut off: its header does not fit in 16 bytes",
        ),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0[]", "model.safetensors is damaged: its header"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"x": "model-00002-of-00002.safetensors"}}',
            "lists model-00002-of-00002.safetensors, which is not there",
        ),
    ],
    ids=[
        "no config",
        "config cut off",
        "config empty",
        "quantised by others",
        "no tokenizer",
        "weights empty",
        "weights of noise",
        "weights without header",
        "LFS pointer",
        "a shard is missing",
    ],
)
def test_a_damaged_model_names_the_file(*, model: Path, tmp_path: Path, name: str, content: bytes, says: str) -> None:
    damage(model, name, content)
    error = refusal(f"file://{model}", tmp_path)
    assert error.code == ExitCode.MODEL_INVALID
    assert says in error.message


def test_weights_that_were_cut_off_say_how_long_they_must_be(model: Path, tmp_path: Path) -> None:
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-100])
    error = refusal(f"file://{model}", tmp_path)
    assert error.code == ExitCode.MODEL_INVALID
    assert f"model.safetensors has {len(whole) - 100} bytes, its header says {len(whole)}" in error.message


def test_pickled_weights_are_never_loaded(model: Path, tmp_path: Path) -> None:
    for path in model.glob("*.safetensors"):
        path.unlink()
    error = refusal(f"file://{model}", tmp_path)
    assert error.code == ExitCode.MODEL_INVALID
    assert "only pickled weights, which can run code: save it as safetensors" in error.message


@pytest.mark.parametrize("place", ["file:///nonexistent/model", "pvc://absent/model"])
def test_no_model_at_all(place: str, tmp_path: Path) -> None:
    error = refusal(place, tmp_path)
    assert error.code == ExitCode.MODEL_NOT_FOUND
    assert place in error.message


def test_a_model_that_does_not_fit_the_disk_is_refused_before_its_download(
    bucket: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_folder(open_store(bucket, Use.MODEL), model, f"{bucket}/model")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    error = refusal(f"{bucket}/model", tmp_path)
    assert error.code == ExitCode.DISK_FULL
    assert "raise resources.ephemeralStorage" in error.message
