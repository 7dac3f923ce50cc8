"""Fixtures of the trainer's tests: a real S3 server for the session, and a bucket of one's own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from dev.cluster.azurite import AzureServer
from dev.cluster.gcs import GcsServer
from dev.cluster.s3 import S3Server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with its credentials in the environment."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(scope="session")
def shared_bucket(s3_server: S3Server) -> str:
    """One bucket for the session: each costs the server seven volumes."""
    return s3_server.create_bucket("trainer")


@pytest.fixture
def bucket(s3: S3Server, shared_bucket: str) -> str:
    """An empty s3:// folder of the test's own."""
    return f"s3://{shared_bucket}/{uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    with GcsServer(tmp_path_factory.mktemp("gcs")) as server:
        server.create_bucket("trainer")
        yield server


@pytest.fixture
def gcs_bucket(gcs_server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty gs:// folder of the test's own, with the server in the environment."""
    for name, value in gcs_server.env.items():
        monkeypatch.setenv(name, value)
    return f"gs://trainer/{uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    with AzureServer(tmp_path_factory.mktemp("azure")) as server:
        server.create_container("trainer")
        yield server


@pytest.fixture
def azure(azure_server: AzureServer, monkeypatch: pytest.MonkeyPatch) -> AzureServer:
    """The server, with its credentials in the environment."""
    for name, value in azure_server.env.items():
        monkeypatch.setenv(name, value)
    return azure_server


@pytest.fixture
def container(azure: AzureServer) -> str:
    """An empty az:// folder of the test's own."""
    return f"az://trainer/{uuid4().hex[:12]}"
