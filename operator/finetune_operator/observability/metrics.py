"""What Prometheus scrapes: jobs by phase, how long they wait and run, how attempts fail, and how the operator keeps up.

Everything about jobs is counted when a status is written, which is locked: each change once, whoever else writes.
Counters begin anew with the process, as Prometheus expects.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_contract.exit_codes import FAILURES
from finetune_operator.api.conditions import Phase
from finetune_operator.api.parse import parse_time
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.api.views import JobView

_LONG = (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800)
"""Seconds: from what a small model takes to a week."""
_SHORT = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ENDED = (Phase.SUCCEEDED, Phase.FAILED)
_ASKING = (Phase.QUEUED, Phase.STARTING, Phase.RUNNING, Phase.SUSPENDING)
"""Phases in which the pods of a training attempt are there, or are asked for."""


class Metrics:
    """The operator's metrics, and the text that they are served as."""

    def __init__(
        self,
        *,
        jobs: Callable[[], Iterable[FineTuneJobStatus]],
        depth: Callable[[], int],
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """`jobs` yields the status of every job, `depth` is the number of jobs that wait to be looked at.

        Where `leads` says no, another replica tells how many jobs there are, and each is counted once.
        """
        self._registry = registry = CollectorRegistry()
        registry.register(_Now(jobs, depth, leads))
        ProcessCollector(registry=registry)
        self._attempts = Counter("finetune_attempts", "Attempts begun.", registry=registry)
        self._failures = Counter(
            "finetune_attempt_failures",
            "Attempts that failed, by class and reason.",
            ("class", "reason", "stage"),
            registry=registry,
        )
        self._starts = Histogram(
            "finetune_job_start_seconds",
            "Time from a run's start until its trainer works, suspension left out.",
            buckets=_LONG,
            registry=registry,
        )
        self._durations = Histogram(
            "finetune_job_duration_seconds",
            "Time from a run's start to its end.",
            ("phase",),
            buckets=_LONG,
            registry=registry,
        )
        # Not the names that training pods serve their own under: a sum over both would count a run twice.
        self._gpu_seconds = Counter("finetune_job_gpu_seconds", "GPU-seconds of runs that ended.", registry=registry)
        self._tokens = Counter("finetune_job_tokens", "Tokens trained on by runs that ended.", registry=registry)
        self._reconciles = Histogram(
            "finetune_reconcile_duration_seconds", "Time of one reconcile.", buckets=_SHORT, registry=registry
        )
        self._errors = Counter(
            "finetune_reconcile_errors", "Reconciles that failed, by what failed.", ("error",), registry=registry
        )
        self._begin_at_zero()
        # Named as client-go names it: the usual alerts about a component's requests hold here as well.
        self._requests = Counter(
            "rest_client_requests", "Requests to the API server, by answer.", ("method", "code"), registry=registry
        )

    def _begin_at_zero(self) -> None:
        """Have the series that are known be there from the start: what begins with one has not increased by one."""
        for phase in _ENDED:
            self._durations.labels(phase)
        for failure in FAILURES:
            for stage in ("prepare", "train"):
                self._failures.labels(failure.failure_class, failure.reason, stage)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def answered(self, method: str, _path: str, code: str, _began: int) -> None:
        """Count a request to the API server: its HTTP status, or "<error>" where no answer came."""
        self._requests.labels(method, code).inc()

    def reconciled(self, seconds: float) -> None:
        """Count a reconcile."""
        self._reconciles.observe(seconds)

    def failed(self, error: Exception) -> None:
        """Count a reconcile that failed."""
        self._errors.labels(type(error).__name__).inc()

    def wrote(self, job: JobView, new: FineTuneJobStatus) -> None:
        """Count what a status write has changed."""
        old = job.status
        if new.attempt is not None and (new.run, new.attempt) != (old.run, old.attempt):
            self._attempts.inc()
        if (failure := new.last_failure) and failure != old.last_failure:
            self._failures.labels(failure.failure_class, failure.reason, failure.stage).inc()
        if new.training_start_time and not old.training_start_time:
            self._starts.observe(max(0.0, _seconds(new, new.training_start_time) - (new.suspended_seconds or 0)))
        if new.phase in _ENDED and old.phase not in _ENDED:
            self._ended(new)

    def _ended(self, status: FineTuneJobStatus) -> None:
        if status.completion_time:
            self._durations.labels(status.phase).observe(_seconds(status, status.completion_time))
        if status.usage:
            self._gpu_seconds.inc(status.usage.gpu_seconds or 0)
            self._tokens.inc(status.usage.trained_tokens or 0)


class _Now(Collector):
    """What is so at the moment of the scrape."""

    def __init__(
        self, jobs: Callable[[], Iterable[FineTuneJobStatus]], depth: Callable[[], int], leads: Callable[[], bool]
    ) -> None:
        self._jobs, self._depth, self._leads = jobs, depth, leads

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges."""
        leads = self._leads()
        yield GaugeMetricFamily("finetune_leader", "Whether this replica is the one that acts.", value=leads)
        tally: Tally[str] = Tally()
        gpus: Tally[str] = Tally()
        for status in self._jobs() if leads else ():
            phase = status.phase or Phase.PENDING
            tally[phase] += 1
            gpus[phase] += status.resolved.gpus if status.resolved else 0
        told = "told by the leader"
        yield _by_phase("finetune_jobs", f"FineTuneJobs by phase, {told}.", tally, Phase if leads else ())
        asked = "GPUs that training pods have or wait for, by phase"
        yield _by_phase("finetune_gpus", f"{asked}, {told}.", gpus, _ASKING if leads else ())
        depth = self._depth() if leads else 0
        yield GaugeMetricFamily("finetune_queue_depth", "Jobs that wait to be looked at.", value=depth)


def _by_phase(name: str, text: str, tally: Tally[str], phases: Iterable[Phase]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text, labels=("phase",))
    for phase in phases:
        gauge.add_metric((phase,), tally[phase])
    return gauge


def _seconds(status: FineTuneJobStatus, until: str) -> float:
    begun, ended = parse_time(status.start_time), parse_time(until)
    return (ended - begun).total_seconds() if begun and ended else 0.0
