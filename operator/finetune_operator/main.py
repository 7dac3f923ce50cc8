"""Wiring: the parts put together, and kopf as informer, login, liveness probe and signal handling. Nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import kopf

from finetune_operator.api import constants as c
from finetune_operator.api.report import ProgressReport
from finetune_operator.api.views import JobView
from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.gateway import KubeGateway
from finetune_operator.kube.leases import KubeLeaseStore
from finetune_operator.kube.publish import Address, keep_published
from finetune_operator.kube.secrets import KubeTlsStore
from finetune_operator.kube.tokens import KubeTokenReviewer
from finetune_operator.observability.endpoint import MetricsEndpoint
from finetune_operator.observability.metrics import Metrics
from finetune_operator.observability.watching import Watching
from finetune_operator.policy.decide import PolicySettings
from finetune_operator.progress.certificates import server_names
from finetune_operator.progress.endpoint import StatusEndpoint
from finetune_operator.progress.memory import ProgressStore
from finetune_operator.progress.ports import JobHandle
from finetune_operator.progress.server import StatusServer
from finetune_operator.progress.tls import SECRET, TlsKeeper
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.directory import Directory
from finetune_operator.runtime.feed import Feed
from finetune_operator.runtime.gateway import Kind
from finetune_operator.runtime.leader import Leader
from finetune_operator.runtime.loop import Loop
from finetune_operator.runtime.queue import WorkQueue
from finetune_operator.runtime.reconciler import Reconciler, Wiring
from finetune_operator.settings import Settings, parse_bind, progress_path

log = logging.getLogger(__name__)
_ELECTION_SECONDS = 60.0
Work = Callable[[], Awaitable[None]]

WATCHED: dict[Kind, tuple[str, str, str]] = {
    "FineTuneJob": (c.GROUP, c.VERSION, c.JOB_PLURAL),
    "FineTuneProfile": (c.GROUP, c.VERSION, c.PROFILE_PLURAL),
    "Job": ("batch", "v1", "jobs"),
    "Pod": ("", "v1", "pods"),
}


class _PostingJobs:
    """`progress.ports.Jobs` over the directory."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def find(self, namespace: str, name: str) -> JobHandle | None:
        """Return the job of this name."""
        found = self._directory.live_pods(namespace, name)
        return found and JobHandle(uid=found[0], attempt=found[1], pods=found[2])

    def accept(self, uid: str, report: ProgressReport) -> None:
        """Take the newest report of a job."""
        self._directory.accept(uid, report)


class Operator:
    """The running parts, between kopf's startup and cleanup."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self.stop = threading.Event()
        """Set to have kopf end."""
        self.crashed = False
        self.feed: Feed | None = None
        self.loop: Loop | None = None
        self.leader: Leader | None = None

    async def start(self) -> None:
        """Connect, serve, and start to work."""
        settings, cache, queue, reports = self._settings, Cache(), WorkQueue(), ProgressStore()
        metrics = Metrics(jobs=lambda: (job.status for job in cache.jobs), depth=queue.depth, leads=self.leads)
        watching = Watching(metrics)
        self._stack.push_async_callback(asyncio.to_thread, watching.close)
        api = await self._stack.enter_async_context(await KubeClient.connect(answered=watching.answered))
        leases = KubeLeaseStore(api, namespace=settings.namespace, name=c.MANAGER)
        self.leader = leader = Leader(leases, me=settings.pod_name, told=queue.close)
        gateway = KubeGateway(api, settings.watch_namespace, may_write=leader.leads)
        self.feed = Feed(cache, queue, forget=reports.forget)
        tls = TlsKeeper(
            KubeTlsStore(api, namespace=settings.namespace, name=SECRET),
            names=server_names(settings.status_url, namespace=settings.namespace),
        )
        directory = Directory(cache=cache, queue=queue, keep=reports.put)
        endpoint = StatusEndpoint(jobs=_PostingJobs(directory), reviewer=KubeTokenReviewer(api), leading=leader.leads)
        server = StatusServer(bind=settings.status_bind, endpoint=endpoint, tls=tls, ready=self.is_ready)
        await self._stack.enter_async_context(server)
        await self._stack.enter_async_context(MetricsEndpoint(bind=settings.metrics_bind, text=metrics.text))
        reconciler = Reconciler(
            cache=cache,
            gateway=gateway,
            settings=PolicySettings(settings.trainer_image, settings.progress_seconds, settings.require_profile),
            wiring=Wiring(
                progress_url=self._progress_url, progress_ca=lambda: tls.ca_pem, otlp_endpoint=watching.endpoint
            ),
            latest=reports.latest,
            clock=lambda: datetime.now(UTC),
            posting=reports.posting,
            observer=watching,
        )
        self.loop = Loop(
            queue=queue,
            reconciler=reconciler,
            feed=self.feed,
            gateway=gateway,
            workers=settings.workers,
            resync_seconds=settings.resync_seconds,
            lead=lambda work: leader.run(self._while_leading(api, work)),
            observer=watching,
        )
        task = asyncio.create_task(self.loop.run(), name="operator-loop")
        task.add_done_callback(self._ended)
        self._stack.push_async_callback(_cancel, task)

    async def close(self) -> None:
        """End what is under way, give the Lease back, then stop everything in the reverse order."""
        self.stop.set()  # kopf waits for it in a thread of its own, which would hold up the process's end
        if self.leader:
            await self.leader.end()
        await self._stack.aclose()

    def leads(self) -> bool:
        """Whether this replica is the one that acts."""
        return self.leader is not None and self.leader.leads()

    def is_ready(self) -> bool:
        """Whether this replica could lead at once, or does."""
        return self.loop is not None and self.loop.synced

    def is_healthy(self) -> bool:
        """Whether the loop and the election move on."""
        if self.loop is None or self.leader is None:
            return False
        return self.loop.is_healthy() and (not self.loop.synced or self.leader.idle_seconds() < _ELECTION_SECONDS)

    def _while_leading(self, api: KubeClient, work: Work) -> Work:
        """Return the work with what only the leader says: where posts go."""
        settings = self._settings
        if not settings.pod_ip:
            return work
        _, port = parse_bind(settings.status_bind, variable="FINETUNE_STATUS_BIND")
        address = Address(settings.pod_ip, port, settings.namespace, settings.pod_name, settings.pod_uid)

        async def published() -> None:
            task = asyncio.create_task(keep_published(api, address))
            try:
                await work()
            finally:
                await _cancel(task)

        return published

    def _progress_url(self, job: JobView) -> str:
        return self._settings.status_url + progress_path(job.namespace, job.name)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Crash-only: an operator that lives on without its loop would look healthy and do nothing."""
        if not task.cancelled() and task.exception():
            log.critical("the operator's loop has crashed", exc_info=task.exception())
            self.crashed = True
            self.stop.set()


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


def build_registry(operator: Operator) -> kopf.OperatorRegistry:
    """Return kopf's handlers, which only hand on what they see."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_kubeconfig(**kwargs) or kopf.login_with_service_account(**kwargs)

    # Not retried in place: a start that fails ends the process, and the kubelet starts it anew.
    @kopf.on.startup(registry=registry, errors=kopf.ErrorsMode.PERMANENT)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure_kopf(settings)
        await operator.start()

    @kopf.on.cleanup(registry=registry)
    async def close(**_: Any) -> None:
        await operator.close()

    @kopf.on.probe(registry=registry, id="loop", errors=kopf.ErrorsMode.PERMANENT)
    def probe(**_: Any) -> str:
        if not operator.is_healthy():
            raise RuntimeError("the loop or the election stands still")
        return "ok"

    for kind, (group, version, plural) in WATCHED.items():
        kopf.on.event(group, version, plural, registry=registry, id=f"seen-{plural}")(_handler(operator, kind))
    return registry


def _handler(operator: Operator, kind: Kind) -> Any:
    async def handle(event: Any, **_: Any) -> None:
        if operator.feed is None:
            return
        body = event["object"]
        if event["type"] == "DELETED":
            operator.feed.gone(kind, body["metadata"]["uid"])
        else:
            operator.feed.seen(kind, body)

    return handle


class _NoDiffs(kopf.DiffBaseStorage):
    """kopf compares each object with what it was, whoever asks for it: four deep copies of a pod with each event.

    Handlers of events, all that we have, are told the object as it is and nothing else.
    """

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        """Keep nothing."""


class _ForeverWithJitter:
    """Backoffs that never end: kopf's own list ends after 54 s of API outage, and then the process with it."""

    def __iter__(self) -> Iterator[float]:
        delay = 1.0
        while True:
            yield delay * random.uniform(0.8, 1.2)  # noqa: S311
            delay = min(30.0, delay * 2)


def configure_kopf(settings: kopf.OperatorSettings) -> None:
    """Set what kopf.md, section 6, measured."""
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = _ForeverWithJitter()
    settings.networking.enforce_retry_after = True
    settings.watching.label_selectors["batch", "v1", "jobs"] = c.MANAGED_SELECTOR
    settings.watching.label_selectors["", "v1", "pods"] = c.MANAGED_SELECTOR
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = kopf.MultiProgressStorage([])
    settings.queueing.idle_timeout = 1.0
    settings.queueing.error_delays = (1, 2, 5, 10, 30, 60)
    settings.queueing.exit_timeout = 5.0
    settings.process.ultimate_exiting_timeout = 25


def run(settings: Settings) -> int:
    """Run the operator until it is told to end; return the exit code."""
    operator = Operator(settings)
    kopf.run(
        registry=build_registry(operator),
        clusterwide=settings.watch_namespace is None,
        namespaces=[settings.watch_namespace] if settings.watch_namespace else [],
        liveness_endpoint=settings.liveness_url,
        stop_flag=operator.stop,
        standalone=True,
    )
    return 1 if operator.crashed else 0
