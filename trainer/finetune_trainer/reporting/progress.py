"""Progress on its way to the operator: a thread that posts the latest state and never holds training up.

The protocol is Kubeflow Trainer's (`finetune_contract.progress`). Nothing depends on a post: a server that is away, a
token that expired or a certificate that does not match is logged once, and training goes on.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Self

from finetune_contract import paths
from finetune_contract.progress import Metric, ProgressPost, TrainerStatus
from finetune_trainer.logs import log

INTERVAL = 2.0
"""Seconds between two posts: newer states replace those that have not been sent."""
_TIMEOUT = 5.0
_RECENT_STEPS = 20


class StepClock:
    """How long a step takes, evaluation and checkpoints between steps included, from the recent ones."""

    def __init__(self) -> None:
        self._ends: deque[tuple[float, int, int]] = deque(maxlen=_RECENT_STEPS + 1)
        self._begin: tuple[float, int, int] | None = None

    def step_ended(self, step: int, *, tokens: int, now: float | None = None) -> None:
        """Take note of a step's end; `tokens` counts all tokens so far."""
        self._ends.append((time.monotonic() if now is None else now, step, tokens))
        self._begin = self._begin or self._ends[0]

    def seconds_a_step(self) -> float | None:
        """Return the mean of the recent steps, None before there are two ends."""
        if len(self._ends) < 2:  # noqa: PLR2004 - two ends make one duration
            return None
        (first, first_step, _), (last, last_step, _) = self._ends[0], self._ends[-1]
        return (last - first) / (last_step - first_step)

    def tokens_per_second(self) -> float | None:
        """Return the recent throughput."""
        return _throughput(self._ends[0], self._ends[-1]) if self._ends else None

    def mean_tokens_per_second(self) -> float | None:
        """Return the throughput since the first step."""
        return _throughput(self._begin, self._ends[-1]) if self._begin else None


def _throughput(begin: tuple[float, int, int], end: tuple[float, int, int]) -> float | None:
    seconds, tokens = end[0] - begin[0], end[2] - begin[2]
    return tokens / seconds if seconds > 0 else None


class Poster:
    """Posts the newest status; without a server URL it does nothing."""

    def __init__(self, *, url: str | None, ca_file: Path | None, token_file: Path | None) -> None:
        self._url, self._token_file = url, token_file
        self._tls = _trusting(ca_file) if url and url.startswith("https:") else None
        self._latest: TrainerStatus | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        if url:
            self._thread.start()

    @classmethod
    def from_env(cls) -> Self:
        """Return a poster for the server that the operator's variables name; only rank 0 speaks."""
        first_rank = os.environ.get("RANK", "0") == "0"
        return cls(
            url=os.environ.get(paths.ENV_PROGRESS_URL) if first_rank else None,
            ca_file=_optional_path(paths.ENV_PROGRESS_CA),
            token_file=_optional_path(paths.ENV_PROGRESS_TOKEN),
        )

    def post(self, status: TrainerStatus) -> None:
        """Have this status sent soon, in place of any that still waits."""
        with self._changed:
            self._latest = status
            self._changed.notify()

    def close(self) -> None:
        """Send what waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * _TIMEOUT)

    def _run(self) -> None:
        while (status := self._next()) is not None:
            self._send(status)
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=INTERVAL)

    def _next(self) -> TrainerStatus | None:
        with self._changed:
            self._changed.wait_for(lambda: self._latest is not None or self._closing)
            status, self._latest = self._latest, None
            return status

    def _send(self, status: TrainerStatus) -> None:
        try:
            with urllib.request.urlopen(self._request(status), timeout=_TIMEOUT, context=self._tls):  # noqa: S310
                self._complained = False
        except (OSError, ValueError) as error:
            if not self._complained:
                log.warning("progress cannot be posted (%s); training goes on", error)
            self._complained = True

    def _request(self, status: TrainerStatus) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if self._token_file:
            # The kubelet renews the token in place: it is read anew for every post.
            headers["Authorization"] = f"Bearer {self._token_file.read_text().strip()}"
        body = ProgressPost(trainer_status=status).to_json().encode()
        return urllib.request.Request(self._url or "", data=body, headers=headers, method="POST")  # noqa: S310


class Progress:
    """The state of a run as the operator sees it: named numbers, each post replacing the one before."""

    def __init__(self, poster: Poster) -> None:
        self._poster = poster
        self._numbers: dict[str, float] = {}
        self._remaining: float | None = None

    @property
    def numbers(self) -> dict[str, float]:
        """All numbers as they stand."""
        return self._numbers

    def update(self, *, remaining_seconds: float | None = None, **numbers: float | None) -> None:
        """Change some numbers, named as the contract names them, and post all."""
        self._numbers |= {name: value for name, value in numbers.items() if value is not None}
        self._remaining = remaining_seconds if remaining_seconds is not None else self._remaining
        self._poster.post(status_of(self._numbers, remaining_seconds=self._remaining))

    def close(self) -> None:
        """Send the last state."""
        self._poster.close()


def status_of(numbers: Mapping[str, float], *, remaining_seconds: float | None) -> TrainerStatus:
    """Return the body's status; a number that is not finite is left out, since it is not JSON."""
    finite = {name: value for name, value in numbers.items() if isfinite(value)}
    total = finite.get("totalSteps")
    return TrainerStatus(
        progress_percentage=min(100, int(100 * finite.get("step", 0) / total)) if total else None,
        estimated_remaining_seconds=None if remaining_seconds is None else max(0, round(remaining_seconds)),
        metrics=tuple(Metric(name=name, value=f"{value:.10g}") for name, value in sorted(finite.items())),
        last_updated_time=datetime.now(UTC),
    )


def _trusting(ca_file: Path | None) -> ssl.SSLContext | None:
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except OSError as error:
        log.warning("progress cannot be posted: CA file %s: %s; training goes on", ca_file, error)
        return ssl.create_default_context()


def _optional_path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None
