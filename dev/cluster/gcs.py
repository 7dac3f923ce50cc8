"""A server that speaks Google Cloud Storage's API, for tests: fake-gcs-server, a Go module, built once and cached.

    with GcsServer(run_dir) as gcs:
        gcs.create_bucket("models")
        subprocess.run(trainer, env={**os.environ, **gcs.env})

It takes any credentials; what it is there for are uploads, conditions, ranges and listings.
"""

import http.client
import json
from pathlib import Path
from typing import Self

from dev.cluster.build import FAKE_GCS, built
from dev.cluster.parts import Part, plain_environment
from dev.cluster.ports import free_ports

READY_TIMEOUT = 30.0


class GcsServer:
    """A fake-gcs-server on loopback, as a context manager or by `start` and `stop`."""

    def __init__(self, run_dir: Path | str) -> None:
        self.directory = Path(run_dir).absolute() / "gcs"
        self.port = 0
        self._part: Part | None = None

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return {"STORAGE_EMULATOR_HOST": self.endpoint}

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        command = [
            *(str(built(FAKE_GCS) / "fake-gcs-server"), "-scheme=http", "-host=127.0.0.1", f"-port={self.port}"),
            *(f"-external-url={self.endpoint}", f"-public-host=127.0.0.1:{self.port}", "-log-level=warn"),
            *("-backend=filesystem", f"-filesystem-root={self.directory / 'data'}"),
        ]
        env = plain_environment(HOME=str(self.directory), TMPDIR=str(self.directory))
        self._part = Part("GCS server", command, log=self.directory / "server.log", env=env)
        self._part.start()
        self._part.wait_ready(self._answers, timeout=READY_TIMEOUT)

    def stop(self) -> None:
        """End the server."""
        if self._part:
            self._part.stop(patience=0.2)

    def create_bucket(self, name: str) -> str:
        """Create a bucket and return its name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        headers = {"Content-Type": "application/json"}
        try:
            connection.request("POST", "/storage/v1/b?project=test", json.dumps({"name": name}), headers)
            answer = connection.getresponse()
            if answer.status >= http.client.BAD_REQUEST:
                raise RuntimeError(f"bucket {name}: {answer.status} {answer.read()!r}")
        finally:
            connection.close()
        return name

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/_internal/healthcheck")
            return connection.getresponse().status < http.client.BAD_REQUEST
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
