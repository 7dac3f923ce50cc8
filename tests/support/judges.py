"""Judges for tests: a real server of transformers with the small model, and a fake that behaves as told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dev.cluster.ports import free_ports


@dataclass
class FakeJudge:
    """An OpenAI-compatible server that is none: it answers what `reply` makes of the chat, or as `behave` tells it."""

    reply: Callable[[str], str] = lambda _: "[[C]]"
    """From the user's turn to the reply's text."""
    behave: Callable[[int, Any], bool] = lambda *_: False
    """From the number of the request and its handler to whether it was dealt with, before `reply` is asked."""
    port: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies, in the order of their arrival."""
    keys: set[str | None] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)

    @property
    def endpoint(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}/v1"


@contextmanager
def serving(judge: FakeJudge) -> Iterator[FakeJudge]:
    """Serve a fake judge on a port of its own."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(judge.requests)
                judge.requests.append(body)
                judge.keys.add(self.headers["Authorization"])
                judge.paths.add(self.path)
            if not judge.behave(number, self):
                answer(self, 200, {"choices": [{"message": {"content": judge.reply(body["messages"][-1]["content"])}}]})

        def do_GET(self) -> None:
            judge.keys.add(self.headers["Authorization"])
            answer(self, 405, b"")

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    judge.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(handler: BaseHTTPRequestHandler, status: int, body: Any, **headers: str) -> bool:
    """Send a response; always true, so that it can end a `behave`."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)
    return True


@contextmanager
def transformers_serve(model: Path) -> Iterator[str]:
    """Serve a model with `transformers serve`, a real OpenAI-compatible server; yields its base URL."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([*command, "--device", "cpu"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        _until_healthy(process, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.communicate()


def _until_healthy(process: subprocess.Popen[str], url: str, *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise AssertionError(f"transformers serve did not start: {process.communicate()[1]}") from None
        time.sleep(0.3)
