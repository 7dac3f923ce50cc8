"""What goes wrong in storage is named: the endpoint, the Secret's use, the bucket; never a credential."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dev.cluster.s3 import S3Server
from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import Use
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.storage import open_store
from finetune_trainer.storage.ranges import RANGE
from finetune_trainer.storage.s3 import SHA256

WRONG = "a-secret-that-must-not-be-shown"


def failure(uri: str, use: Use = Use.DATASET) -> TrainerError:
    """Read a URI and return how it failed."""
    with pytest.raises(TrainerError) as caught:
        open_store(uri, use).read(uri)
    return caught.value


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": WRONG}, "model.secretRef"),
        ({"MODEL_AWS_ACCESS_KEY_ID": "AKNOBODY", "MODEL_AWS_SECRET_ACCESS_KEY": WRONG}, "MODEL_AWS_SECRET_ACCESS_KEY"),
        ({"MODEL_AWS_ACCESS_KEY_ID": "AKNOBODY"}, "only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ],
    ids=["wrong plain secret", "wrong secret of the use", "half of the secret"],
)
def test_refused_credentials_name_their_secret(
    bucket: str, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    error = failure(f"{bucket}/x", Use.MODEL)
    assert error.code == ExitCode.STORAGE_ACCESS_DENIED
    assert says in error.message
    assert WRONG not in error.message


def test_each_use_has_its_own_credentials(bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKNOBODY")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another account")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(f"OUTPUT_{name}", s3.env[name])
    open_store(bucket, Use.OUTPUT).write(f"{bucket}/x", b"written")
    assert open_store(bucket, Use.OUTPUT).read(f"{bucket}/x") == b"written"


def test_no_credentials_at_all(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    error = failure(f"{bucket}/x")
    assert error.code == ExitCode.STORAGE_ACCESS_DENIED
    assert "dataset.secretRef" in error.message


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("uri", ["s3://no-such-bucket/data.jsonl", "s3://Not_A_Bucket!/data.jsonl"])
def test_a_missing_bucket_is_named(uri: str, s3: S3Server) -> None:
    error = failure(uri)
    assert error.code == ExitCode.BUCKET_NOT_FOUND
    assert uri.split("/")[2] in error.message
    assert s3.endpoint in error.message
    with pytest.raises(TrainerError, match="There is no bucket"):
        open_store(uri, Use.DATASET).download(uri, Path("/nonexistent"))


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def always_503() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", ["closed_port", "always_503"])
def test_storage_that_is_down_is_reported_within_half_a_minute(
    kind: str, s3: S3Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = request.getfixturevalue(kind)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    started = time.monotonic()
    error = failure("s3://models/x")
    assert time.monotonic() - started < 30
    assert error.code == ExitCode.STORAGE_UNAVAILABLE
    assert endpoint in error.message
    assert s3.secret_key not in error.message


@pytest.mark.usefixtures("s3")
def test_an_endpoint_that_is_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    error = failure("s3://models/x")
    assert error.code == ExitCode.CONFIG_INVALID
    assert "AWS_ENDPOINT_URL" in error.message


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    uri = f"file://{tmp_path}/x"
    with pytest.raises(TrainerError, match="disk is full") as caught:
        open_store(uri, Use.OUTPUT).write(uri, b"x")
    assert caught.value.code == ExitCode.DISK_FULL
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_was_killed_goes_on(bucket: str, tmp_path: Path) -> None:
    store = open_store(bucket, Use.MODEL)
    content = os.urandom(RANGE + 1000)
    (tmp_path / "up").write_bytes(content)
    digest = store.upload(tmp_path / "up", f"{bucket}/big")
    part = tmp_path / f"down.{store.list(f'{bucket}/big')[0].etag}.part"
    part.write_bytes(content[:RANGE])
    (tmp_path / "down.of-an-older-object.part").write_bytes(b"old")
    assert store.download(f"{bucket}/big", tmp_path / "down") == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["down", "up"]


def test_a_damaged_part_is_found_out_and_thrown_away(bucket: str, tmp_path: Path) -> None:
    store = open_store(bucket, Use.MODEL)
    (tmp_path / "up").write_bytes(b"right")
    digest = store.upload(tmp_path / "up", f"{bucket}/x")
    (tmp_path / f"down.{store.list(f'{bucket}/x')[0].etag}.part").write_bytes(b"wro")
    with pytest.raises(TrainerError, match=f"{SHA256} differ") as caught:
        store.download(f"{bucket}/x", tmp_path / "down")
    assert caught.value.code == ExitCode.STORAGE_UNAVAILABLE
    assert not (tmp_path / "down").exists()
    assert store.download(f"{bucket}/x", tmp_path / "down") == digest


def test_an_object_that_vanishes_is_not_there(bucket: str, tmp_path: Path) -> None:
    store = open_store(bucket, Use.MODEL)
    with pytest.raises(NotFoundError):
        store.download(f"{bucket}/x", tmp_path / "x")
