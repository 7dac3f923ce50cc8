"""What this machine knows about package registries, as build secrets: used during a build, in no layer afterwards."""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
from pathlib import Path

_CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


def secret_flags(folder: Path) -> list[str]:
    """Write the secrets into a folder and return the flags of `build` that pass them."""
    ca = _ca_file()
    registry = folder / "registry"
    registry.write_text(_exports(_registry_env(_pip_config()), with_ca=ca is not None))
    registry.chmod(0o600)
    return [f"--secret=id=registry,src={registry}", *([f"--secret=id=ca,src={ca}"] if ca else [])]


def _pip_config() -> dict[str, str]:
    """Return pip's options from its files and its variables, the latter last."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    options = (line.partition("=") for line in listed.splitlines() if "=" in line)
    return {key.rpartition(".")[2]: str(ast.literal_eval(value)) for key, _, value in options}


def _ca_file() -> str | None:
    named = [os.environ.get(name) for name in _CA_VARIABLES] + [_pip_config().get("cert")]
    return next((path for path in named if path and Path(path).is_file()), None)


def _registry_env(pip: dict[str, str]) -> dict[str, str]:
    index = os.environ.get("UV_DEFAULT_INDEX") or pip.get("index-url")
    timeout = pip.get("default-timeout") or pip.get("timeout")
    return {
        **({"PIP_INDEX_URL": index, "UV_DEFAULT_INDEX": index} if index else {}),
        **({"PIP_DEFAULT_TIMEOUT": timeout, "UV_HTTP_TIMEOUT": timeout} if timeout else {}),
    }


def _exports(env: dict[str, str], *, with_ca: bool) -> str:
    ca = {"PIP_CERT": "/run/secrets/ca", "SSL_CERT_FILE": "/run/secrets/ca"} if with_ca else {}
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in (env | ca).items())
