"""Stand-ins for what the status server asks of the rest of the operator, and a client that trusts only its CA."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from finetune_operator.api.constants import progress_audience
from finetune_operator.api.report import ProgressReport
from finetune_operator.progress.certificates import server_names
from finetune_operator.progress.endpoint import StatusEndpoint
from finetune_operator.progress.identity import TokenIdentity
from finetune_operator.progress.memory import ProgressStore
from finetune_operator.progress.ports import JobHandle, TokenReviewer
from finetune_operator.progress.server import StatusServer
from finetune_operator.progress.tls import TlsKeeper
from finetune_operator.settings import progress_path

GOOD = "good"
LOOPBACK = server_names("https://127.0.0.1:8443", namespace="finetune-system")


class MemoryTlsStore:
    """The Secret as the API server keeps it: writes need the version that was read. One per replica over `shared`."""

    def __init__(self, shared: dict[str, Any] | None = None) -> None:
        self.shared: dict[str, Any] = {"data": {}, "version": 1} if shared is None else shared
        self.writes = 0
        self._read_version = 0

    async def read(self) -> dict[str, bytes] | None:
        self._read_version = self.shared["version"]
        data: dict[str, bytes] | None = self.shared["data"]
        return data

    async def write(self, data: dict[str, bytes]) -> bool:
        if self._read_version != self.shared["version"]:
            return False
        self.shared.update(data=dict(data), version=self._read_version + 1)
        self.writes += 1
        return True


@dataclass
class TableReviewer:
    """A TokenReviewer that knows a table of tokens and, like the API server, refuses a wrong audience."""

    identities: dict[str, TokenIdentity] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    error: Exception | None = None

    async def review_token(self, token: str, *, audience: str) -> TokenIdentity | None:
        self.asked.append((token, audience))
        if self.error:
            raise self.error
        identity = self.identities.get(token)
        return identity if identity and audience in identity.audiences else None


class KnownJobs:
    """The operator's jobs, in a dict; accepted reports go to a real store."""

    def __init__(self, jobs: dict[tuple[str, str], JobHandle] | None = None) -> None:
        self.jobs = {} if jobs is None else jobs
        self.store = ProgressStore()

    def find(self, namespace: str, name: str) -> JobHandle | None:
        return self.jobs.get((namespace, name))

    def accept(self, uid: str, report: ProgressReport) -> None:
        self.store.put(uid, report)


def make_identity(
    *, namespace: str = "team", pod_uid: str | None = "pod-1", job_uid: str = "uid-1", pod_name: str | None = "tune-0"
) -> TokenIdentity:
    """An identity as a TokenReview of a projected token gives it."""
    return TokenIdentity(
        namespace=namespace,
        service_account="default",
        pod_name=pod_name,
        pod_uid=pod_uid,
        audiences=frozenset({progress_audience(job_uid)}),
    )


@dataclass(frozen=True)
class Served:
    """A running server and how to reach it."""

    server: StatusServer
    endpoint: StatusEndpoint
    tls: TlsKeeper
    session: aiohttp.ClientSession

    def url(self, namespace: str = "team", name: str = "tune") -> str:
        return f"https://127.0.0.1:{self.server.port}{progress_path(namespace, name)}"

    async def post(
        self, body: Any, *, token: str | None = GOOD, namespace: str = "team", name: str = "tune", **kwargs: Any
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Post bytes as they are or anything else as JSON; return code, body and headers."""
        content = {"data": body} if isinstance(body, bytes) else {"json": body}
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        arguments = {"headers": headers, **content, **kwargs}
        async with self.session.post(self.url(namespace, name), **arguments) as response:
            return response.status, await response.json(), dict(response.headers)


@asynccontextmanager
async def served(
    *, jobs: KnownJobs, reviewer: TokenReviewer, tls: TlsKeeper | None = None, **options: Any
) -> AsyncIterator[Served]:
    """Run the real server on a free loopback port, over TLS."""
    endpoint = StatusEndpoint(jobs=jobs, reviewer=reviewer, **options)
    keeper = tls or TlsKeeper(MemoryTlsStore(), names=LOOPBACK)
    async with StatusServer(bind="127.0.0.1:0", endpoint=endpoint, tls=keeper) as server:
        trust = aiohttp.TCPConnector(ssl=ssl.create_default_context(cadata=keeper.ca_pem), force_close=True)
        async with aiohttp.ClientSession(connector=trust) as session:
            yield Served(server, endpoint, keeper, session)
