"""What Prometheus scrapes: jobs by phase, how long they wait and run, how attempts fail, and how the operator keeps up.

Everything about jobs is counted when a status is written, which is locked: each change once, whoever else writes.
Counters begin anew with the process, as Prometheus expects.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_operator.api.conditions import Phase
from finetune_operator.api.parse import parse_time
from finetune_operator.api.status import FineTuneJobStatus

_LONG = (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800)
"""Seconds: from what a small model takes to a week."""
_SHORT = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ENDED = (Phase.SUCCEEDED, Phase.FAILED)


class Metrics:
    """The operator's metrics, and the text that they are served as."""

    def __init__(
        self,
        *,
        phases: Callable[[], Iterable[str]],
        depth: Callable[[], int],
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """`phases` yields the phase of every job, `depth` is the number of jobs that wait to be looked at.

        Where `leads` says no, another replica tells how many jobs there are, and each is counted once.
        """
        self._registry = registry = CollectorRegistry()
        registry.register(_Now(phases, depth, leads))
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
        self._gpu_seconds = Counter("finetune_gpu_seconds", "GPU-seconds of runs that ended.", registry=registry)
        self._tokens = Counter("finetune_trained_tokens", "Tokens trained on by runs that ended.", registry=registry)
        self._reconciles = Histogram(
            "finetune_reconcile_duration_seconds", "Time of one reconcile.", buckets=_SHORT, registry=registry
        )
        self._errors = Counter(
            "finetune_reconcile_errors", "Reconciles that failed, by what failed.", ("error",), registry=registry
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def reconciled(self, seconds: float) -> None:
        """Count a reconcile."""
        self._reconciles.observe(seconds)

    def failed(self, error: Exception) -> None:
        """Count a reconcile that failed."""
        self._errors.labels(type(error).__name__).inc()

    def wrote(self, old: FineTuneJobStatus, new: FineTuneJobStatus) -> None:
        """Count what a status write has changed."""
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
        self, phases: Callable[[], Iterable[str]], depth: Callable[[], int], leads: Callable[[], bool]
    ) -> None:
        self._phases, self._depth, self._leads = phases, depth, leads

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges."""
        leads = self._leads()
        yield GaugeMetricFamily("finetune_leader", "Whether this replica is the one that acts.", value=leads)
        jobs = GaugeMetricFamily("finetune_jobs", "FineTuneJobs by phase, told by the leader.", labels=("phase",))
        tally = Tally(self._phases()) if leads else Tally[str]()
        for phase in Phase if leads else ():
            jobs.add_metric((phase,), tally.get(phase, 0))
        yield jobs
        depth = self._depth() if leads else 0
        yield GaugeMetricFamily("finetune_queue_depth", "Jobs that wait to be looked at.", value=depth)


def _seconds(status: FineTuneJobStatus, until: str) -> float:
    begun, ended = parse_time(status.start_time), parse_time(until)
    return (ended - begun).total_seconds() if begun and ended else 0.0
