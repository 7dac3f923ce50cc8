"""Spans for OpenTelemetry, where OTEL_EXPORTER_OTLP_ENDPOINT says to whom; without it nothing of it is imported.

Both sides make spans from times that have passed, and a run's trace and root span have identities that follow from the
job: what the operator and the pods of several attempts send meets in one trace, and no process has to live as long.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
DISABLED = "OTEL_SDK_DISABLED"
_PATIENCE = 3.0
Attributes = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took from one time to another."""

    name: str
    trace: int
    """128 bits."""
    parent: int | None
    """Another span's identity."""
    start: int
    """Nanoseconds since 1970."""
    end: int
    identity: int = field(default_factory=lambda: random.getrandbits(64) | 1)
    """64 bits."""
    attributes: Attributes = field(default_factory=dict)
    error: str = ""
    """What went wrong; empty if nothing did."""


@dataclass(frozen=True, slots=True)
class RunTrace:
    """Where the spans of a run belong."""

    uid: str
    """Of the FineTuneJob."""
    run: int

    @property
    def trace(self) -> int:
        """The trace."""
        return int.from_bytes(self._digest()[:16], "big")

    @property
    def root(self) -> int:
        """The span of the whole run."""
        return int.from_bytes(self._digest()[16:24], "big")

    def _digest(self) -> bytes:
        return hashlib.sha256(f"{self.uid}/{self.run}".encode()).digest()


def new_trace() -> int:
    """Return the identity of a trace that nobody else adds to."""
    return random.getrandbits(128) | 1


def is_wanted(env: Mapping[str, str] = os.environ) -> bool:
    """Whether spans are to be sent."""
    return bool(env.get(ENDPOINT)) and env.get(DISABLED, "").lower() != "true"


def sender(service: str, log: logging.Logger) -> Sender | None:
    """Return who sends spans, if the environment asks for them; what that lacks is logged and costs no more."""
    if not is_wanted():
        return None
    try:
        return Sender(service)
    except ImportError as error:
        log.warning("no traces: %s is not installed (pip install 'finetune-operator[tracing]')", error.name)
        return None


class Sender:
    """Sends spans by OTLP over HTTP from a thread of its own; a collector that is away costs spans and nothing else."""

    def __init__(self, service: str) -> None:
        """`service` is the name where OTEL_SERVICE_NAME is none. Raises ImportError without the extra `tracing`."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._processor = BatchSpanProcessor(OTLPSpanExporter())
        self._resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", service)})

    def send(self, span: Span) -> None:
        """Send a span, some time soon."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

        def context(identity: int) -> SpanContext:
            return SpanContext(span.trace, identity, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

        ended = ReadableSpan(
            span.name,
            context=context(span.identity),
            parent=context(span.parent) if span.parent else None,
            resource=self._resource,
            attributes=dict(span.attributes),
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
            start_time=span.start,
            end_time=span.end,
        )
        self._processor.on_end(ended)

    def close(self) -> None:
        """Send what is left, for three seconds at most: a pod that is told to end has better things to do."""
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(_PATIENCE)
