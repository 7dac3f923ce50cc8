"""The run's figures for Prometheus, as text at /metrics on the pod.

Always on in a cluster, where the operator gives the pod its port `metrics`: it costs a sleeping thread, the text is
made when somebody asks, and a scrape configuration should not need changes to jobs. `finetune run` opens no port.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import isfinite

from finetune_contract import paths
from finetune_trainer.logs import log

# The progress metric, its name here, type and help. Prometheus wants base units, snake case, and _total for counters.
_METRICS = (
    ("step", "step", "gauge", "Optimizer steps done."),
    ("totalSteps", "steps", "gauge", "Optimizer steps of the run."),
    ("epoch", "epoch", "gauge", "Passes over the data done."),
    ("loss", "loss", "gauge", "Training loss of the last step."),
    ("evalLoss", "eval_loss", "gauge", "Held-out loss, when it was last measured."),
    ("gradNorm", "gradient_norm", "gauge", "Norm of the gradients before clipping."),
    ("learningRate", "learning_rate", "gauge", "Current learning rate."),
    ("tokensPerSecond", "tokens_per_second", "gauge", "Tokens trained on a second, of the recent steps."),
    ("mfu", "mfu_ratio", "gauge", "Share of the GPU's peak FLOP/s that the model's arithmetic uses."),
    ("checkpointStep", "checkpoint_step", "gauge", "Step of the newest checkpoint in storage."),
    ("trainedTokens", "trained_tokens_total", "counter", "Tokens trained on, over all attempts."),
    ("gpuSeconds", "gpu_seconds_total", "counter", "GPU time of the run, over all attempts."),
)
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(numbers: Mapping[str, float], *, job: str) -> str:
    """Return progress metrics in Prometheus' text format, version 0.0.4."""
    return "".join(_lines(numbers, job))


def _lines(numbers: Mapping[str, float], job: str) -> Iterator[str]:
    for name, shown, kind, meaning in _METRICS:
        value = numbers.get(name)
        if value is not None and isfinite(value):
            full = f"finetune_{shown}"
            yield f'# HELP {full} {meaning}\n# TYPE {full} {kind}\n{full}{{finetunejob="{job}"}} {value:.10g}\n'


class MetricsServer:
    """Serves the newest numbers; without a port it does nothing."""

    def __init__(self, port: int | None, numbers: Callable[[], Mapping[str, float]], *, job: str) -> None:
        self._server = _listen(port, lambda: exposition(numbers(), job=job)) if port is not None else None
        if self._server:
            threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    @property
    def port(self) -> int | None:
        """The port that is listened on."""
        return self._server.server_port if self._server else None

    def close(self) -> None:
        """Stop serving."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()


def port_from_env() -> int | None:
    """Return the port that the operator has given the pod; only rank 0 serves."""
    value = os.environ.get(paths.ENV_METRICS_PORT)
    return int(value) if value and os.environ.get("RANK", "0") == "0" else None


class _Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    daemon_threads = True

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _listen(port: int, text: Callable[[], str]) -> _Server | None:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            found = self.path.partition("?")[0] == "/metrics"
            body = text().encode() if found else b"see /metrics\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", _CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: a scrape every few seconds is no news."""

    try:
        return _Server(("", port), Handler)
    except OSError as error:
        log.warning("metrics are not served on port %d: %s; training goes on", port, error.strerror or error)
        return None
