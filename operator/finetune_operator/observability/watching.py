"""The observer of a running operator: metrics always, traces where they are asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from finetune_contract.tracing import ENDPOINT, sender
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.api.views import JobView, Key
from finetune_operator.observability.metrics import Metrics
from finetune_operator.observability.tracing import Tracing

log = logging.getLogger(__name__)
SERVICE = "finetune-operator"


class Watching:
    """Hands on to both."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._sender = metrics, sender(SERVICE, log)
        self._tracing = Tracing(self._sender.send) if self._sender else None

    @property
    def endpoint(self) -> str:
        """Where pods send their traces; empty where none are wanted."""
        return os.environ.get(ENDPOINT, "") if self._tracing else ""

    def answered(self, method: str, path: str, code: str, began: int) -> None:
        """The API server has answered, or has not."""
        self._metrics.answered(method, path, code, began)
        if self._tracing:
            self._tracing.answered(method, path, code, began)

    def wrote(self, job: JobView, new: FineTuneJobStatus) -> None:
        """A status was written."""
        self._metrics.wrote(job, new)
        if self._tracing:
            self._tracing.wrote(job, new)

    @contextmanager
    def reconciling(self, key: Key) -> Iterator[None]:
        """A reconcile goes on."""
        if self._tracing is None:
            yield
            return
        with self._tracing.reconciling(key):
            yield

    def reconciled(self, seconds: float) -> None:
        """A reconcile has ended well."""
        self._metrics.reconciled(seconds)

    def failed(self, error: Exception) -> None:
        """A reconcile has failed."""
        self._metrics.failed(error)

    def close(self) -> None:
        """Send what is left."""
        if self._sender:
            self._sender.close()
