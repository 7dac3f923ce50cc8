"""Fixtures of the trainer's tests: a real S3 server for the session, and a bucket of one's own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

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
