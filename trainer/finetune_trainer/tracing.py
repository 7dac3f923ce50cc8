"""The trainer's stages and their steps as spans of the run's trace, where traces are asked for; else nothing at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

from finetune_contract.outcome import Stage
from finetune_contract.run_config import RunConfig
from finetune_contract.tracing import Attributes, RunTrace, Sender, Span, sender
from finetune_trainer.logs import log

SERVICE = "finetune-trainer"
_MOST = 500


@dataclass(frozen=True, slots=True)
class _Stage:
    sender: Sender
    trace: int
    about: Attributes
    parent: int


_now: list[_Stage] = []
"""The stage that this process is in."""


@contextmanager
def traced(stage: Stage, config: RunConfig) -> Iterator[None]:
    """Send a span of the stage, and what its steps send, before it is left."""
    speaks = os.environ.get("RANK", "0") == "0"  # the first process, for all
    spans = sender(SERVICE, log) if speaks else None
    if spans is None:
        yield
        return
    run, where = RunTrace(config.job.uid, config.job.run), config.job
    about: Attributes = {
        "k8s.namespace.name": where.namespace,
        "finetune.job": where.name,
        "finetune.run": where.run,
        "finetune.attempt": where.attempt,
    }
    whole = _Stage(spans, run.trace, about, run.root)
    try:
        with _timed(whole, stage) as identity:
            _now.append(_Stage(spans, run.trace, about, identity))
            yield
    finally:
        _now.clear()
        spans.close()


def step(name: str) -> AbstractContextManager[object]:
    """Send a span of a step of the stage, once it has ended."""
    return _timed(_now[-1], name) if _now else nullcontext()


@contextmanager
def _timed(stage: _Stage, name: str) -> Iterator[int]:
    span = Span(name, stage.trace, stage.parent, time.time_ns(), 0, attributes=stage.about)
    error = ""
    try:
        yield span.identity
    except BaseException as raised:
        error = f"{type(raised).__name__}: {raised}"[:_MOST]
        raise
    finally:
        stage.sender.send(replace(span, end=time.time_ns(), error=error))
