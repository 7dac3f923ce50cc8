"""Traces, an option: a job's life, each reconcile, and the requests to the API server that it makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from finetune_contract.tracing import Span, new_trace
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.api.views import JobView, Key
from finetune_operator.observability.life import life_of

_reconcile: ContextVar[tuple[int, int] | None] = ContextVar("reconcile", default=None)
"""Trace and span of the reconcile that this task is in."""


class Tracing:
    """Makes spans of what it is told."""

    def __init__(self, send: Callable[[Span], None]) -> None:
        self._send = send

    def wrote(self, job: JobView, new: FineTuneJobStatus) -> None:
        """Send what a job has left behind."""
        for span in life_of(job, new):
            self._send(span)

    @contextmanager
    def reconciling(self, key: Key) -> Iterator[None]:
        """Send a span of one reconcile."""
        trace, start, error = new_trace(), time.time_ns(), ""
        identity = new_trace() >> 64 | 1
        token = _reconcile.set((trace, identity))
        try:
            yield
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
            raise
        finally:
            _reconcile.reset(token)
            about = {"k8s.namespace.name": key[0], "finetune.job": key[1]}
            end = time.time_ns()
            self._send(Span("reconcile", trace, None, start, end, identity=identity, attributes=about, error=error))

    def answered(self, method: str, path: str, code: str, began: int) -> None:
        """Send a span of one request: below the reconcile that makes it, or by itself."""
        trace, parent = _reconcile.get() or (new_trace(), None)
        about: dict[str, str | int] = {"http.request.method": method, "url.path": path}
        if code.isdecimal():
            about["http.response.status_code"] = int(code)
        error = "" if code.isdecimal() and int(code) < 500 else code  # noqa: PLR2004 - the server's fault
        self._send(Span(method, trace, parent, began, time.time_ns(), attributes=about, error=error))
