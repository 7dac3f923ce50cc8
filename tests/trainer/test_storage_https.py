"""Data from web servers: fetched whole, continued where they break; never from inside the cluster."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.data.files import data_files
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import https
from finetune_trainer.storage.addresses import kind_of_private
from tests.support.datasets import chats, lines
from tests.support.web import HOSTS, PUBLIC, Web, serving

URI = f"https://{HOSTS[0]}/files/data.jsonl"
DATA = lines(chats(2000))


class Names:
    """Plays the name service: what each host resolves to, one answer a question where there are several."""

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {host: [[PUBLIC]] for host in HOSTS}
        self.dialled: list[str] = []

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        answers = self.answers.get(host)
        found = (answers.pop(0) if len(answers) > 1 else answers[0]) if answers else [host]
        try:
            families = [(ipaddress.ip_address(address).version, address) for address in found]
        except ValueError as error:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from error
        kinds = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [(kinds[version], socket.SOCK_STREAM, 6, "", (address, port)) for version, address in families]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    found = Names()
    monkeypatch.setattr(socket, "getaddrinfo", found.getaddrinfo)
    monkeypatch.setattr(https.time, "sleep", lambda _: None)
    return found


@pytest.fixture
def web(tmp_path: Path, names: Names, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    (folder := tmp_path / "web").mkdir()
    with serving(Web(folder, {"/files/data.jsonl": DATA})) as web:
        monkeypatch.setenv("SSL_CERT_FILE", str(web.certificate))

        def dial(addresses: list[str], port: int) -> socket.socket:
            """Connect to the server whatever the address is, and remember it."""
            names.dialled += addresses
            assert port == 443
            connection = socket.socket()
            connection.settimeout(10)
            connection.connect(("127.0.0.1", web.port))
            return connection

        monkeypatch.setattr(https, "dial", dial)
        yield web


def failure(uri: str, folder: Path) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        data_files(uri, folder)
    return caught.value


def test_a_file_is_fetched_and_hashed(web: Web, names: Names, tmp_path: Path) -> None:
    (file,) = data_files(URI, tmp_path / "fetched")
    assert file.path.read_bytes() == DATA
    assert (file.name, file.sha256) == ("data.jsonl", hashlib.sha256(DATA).hexdigest())
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == ["data"]
    assert names.dialled == [PUBLIC]
    assert web.asked == [(HOSTS[0], "")]


def test_a_broken_connection_is_continued_where_it_broke(web: Web, tmp_path: Path) -> None:
    web.break_after = [100_000, 50_000]
    (file,) = data_files(URI, tmp_path)
    assert file.path.read_bytes() == DATA
    assert [wanted for _, wanted in web.asked] == ["", "bytes=100000-", "bytes=150000-"]


@pytest.mark.parametrize(
    "changes", [{"ranges": False}, {"has_etag": False}, {"changed": lines(chats(1500))}], ids=lambda c: next(iter(c))
)
def test_where_it_cannot_be_continued_it_starts_over(web: Web, tmp_path: Path, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        setattr(web, name, value)
    web.break_after = [100_000]
    (file,) = data_files(URI, tmp_path)
    assert file.path.read_bytes() == (web.changed or DATA)
    assert file.sha256 == hashlib.sha256(web.changed or DATA).hexdigest()


def test_a_server_that_tells_no_length(web: Web, tmp_path: Path) -> None:
    web.has_length = False
    assert data_files(URI, tmp_path)[0].path.read_bytes() == DATA


def test_a_server_that_is_busy_is_asked_again(web: Web, tmp_path: Path) -> None:
    web.statuses["/files/data.jsonl"] = [503, 429, 500]
    assert data_files(URI, tmp_path)[0].path.read_bytes() == DATA


def test_redirects_are_followed_to_other_hosts(web: Web, names: Names, tmp_path: Path) -> None:
    web.redirects = {"/latest": "/moved", "/moved": f"https://{HOSTS[1]}/files/data.jsonl?signature=a%2Fb"}
    (file,) = data_files(f"https://{HOSTS[0]}/latest", tmp_path)
    assert (file.name, file.path.read_bytes()) == ("latest", DATA)
    assert [host for host, _ in web.asked] == [HOSTS[0], HOSTS[0], HOSTS[1]]
    assert names.dialled == [PUBLIC] * 3


PRIVATE = [
    ("127.0.0.1", "loopback"),
    ("::1", "loopback"),
    ("10.96.0.1", "private"),
    ("172.16.3.4", "private"),
    ("192.168.1.1", "private"),
    ("100.100.100.200", "private"),
    ("0.0.0.0", "private"),  # noqa: S104
    ("169.254.169.254", "link-local"),
    ("fe80::1", "link-local"),
    ("fd00:ec2::254", "private"),
    ("168.63.129.16", "metadata"),
    ("224.0.0.1", "multicast"),
    ("::ffff:169.254.169.254", "link-local"),
    ("::ffff:10.0.0.1", "private"),
    ("2002:7f00:1::", "loopback"),
    ("64:ff9b::a00:1", "private"),
]


@pytest.mark.parametrize(("address", "kind"), PRIVATE)
def test_an_address_that_only_the_pod_can_reach_is_refused(
    web: Web, names: Names, tmp_path: Path, address: str, kind: str
) -> None:
    names.answers[HOSTS[0]] = [[PUBLIC, address]]
    error = failure(URI, tmp_path)
    assert error.code == ExitCode.CONFIG_INVALID
    assert f"{HOSTS[0]} has a {kind} address, and data is fetched from public ones only" in error.message
    assert (web.asked, names.dialled) == ([], [])
    assert kind_of_private(ipaddress.ip_address(PUBLIC)) is None


@pytest.mark.parametrize("target", ["127.0.0.1", "[::1]", "169.254.169.254", "inside.example.com"])
def test_a_redirect_to_such_an_address_is_refused(web: Web, names: Names, tmp_path: Path, target: str) -> None:
    names.answers["inside.example.com"] = [["10.0.0.7"]]
    web.redirects = {"/files/data.jsonl": f"https://{target}/latest/meta-data"}
    error = failure(URI, tmp_path)
    assert error.code == ExitCode.CONFIG_INVALID
    assert "data is fetched from public ones only" in error.message
    assert names.dialled == [PUBLIC]


def test_a_name_that_changes_its_answer_gains_nothing(web: Web, names: Names, tmp_path: Path) -> None:
    names.answers[HOSTS[0]] = [[PUBLIC], ["127.0.0.1"]]
    assert data_files(URI, tmp_path)[0].path.read_bytes() == DATA
    assert names.dialled == [PUBLIC]
    web.break_after = [1000]
    names.answers[HOSTS[0]] = [[PUBLIC], ["127.0.0.1"]]
    assert "has a loopback address" in failure(URI, tmp_path).message
    assert names.dialled == [PUBLIC] * 2


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("http://data.example.com/files/data.jsonl", "it leads to a URL that is not https:// or carries credentials"),
        ("file:///etc/passwd", "it leads to a URL that is not https:// or carries credentials"),
        ("https://me:secret@data.example.com/a", "it leads to a URL that is not https:// or carries credentials"),
        ("https://data.example.com:99999/a", "it leads to a URL that is none"),
    ],
)
@pytest.mark.usefixtures("names")
def test_a_redirect_to_something_else_is_refused(web: Web, tmp_path: Path, target: str, says: str) -> None:
    web.redirects = {"/files/data.jsonl": target}
    error = failure(URI, tmp_path)
    assert error.code == ExitCode.CONFIG_INVALID
    assert says in error.message
    assert "secret" not in error.message


def test_redirects_in_a_circle_end(web: Web, tmp_path: Path) -> None:
    web.redirects = {"/files/data.jsonl": "/files/data.jsonl"}
    assert "it redirects more than 5 times" in failure(URI, tmp_path).message
    assert len(web.asked) == 6


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, ExitCode.DATASET_NOT_FOUND, f"Nothing lies at dataset.uri {URI}"),
        (403, ExitCode.STORAGE_ACCESS_DENIED, "the server answered 403; data of the web is read without credentials"),
        (503, ExitCode.STORAGE_UNAVAILABLE, "after 4 attempts: the server answered 503"),
        (400, ExitCode.STORAGE_UNAVAILABLE, "cannot be fetched: the server answered 400"),
    ],
)
def test_a_server_that_refuses(web: Web, tmp_path: Path, status: int, code: ExitCode, says: str) -> None:
    web.statuses["/files/data.jsonl"] = [status] * 10
    error = failure(URI, tmp_path)
    assert error.code == code
    assert says in error.message


def test_a_certificate_of_somebody_else_is_not_trusted(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    error = failure(URI, tmp_path)
    assert error.code == ExitCode.STORAGE_UNAVAILABLE
    assert "its certificate is not trusted" in error.message
    assert web.asked == []


@pytest.mark.usefixtures("web")
def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    error = failure("https://nobody.example.com/data.jsonl", tmp_path)
    assert error.code == ExitCode.STORAGE_UNAVAILABLE
    assert "after 4 attempts: [Errno -2] Name or service not known" in error.message


@pytest.mark.usefixtures("web")
def test_a_file_larger_than_the_disk_is_refused_before_it_fills_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = shutil.disk_usage(os.sep)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: small)
    error = failure(URI, tmp_path)
    assert error.code == ExitCode.DISK_FULL
    assert URI in error.message
