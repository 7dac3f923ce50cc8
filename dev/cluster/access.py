"""Ways into the cluster: kubeconfig files and a few plain requests.

A kubeconfig carries its CA inside, so that it can be copied. `Api` is the small client
with which the cluster looks after itself; it knows nothing of proxies or of the
developer's own kubeconfig, on purpose.
"""

import base64
import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An API server, the CA that vouches for it and a bearer token."""

    server: str
    ca_file: Path
    token: str

    def write_kubeconfig(self, path: Path, *, user: str, namespace: str = "default") -> Path:
        """Write a kubeconfig for this identity, readable by its owner alone."""
        ca = base64.b64encode(self.ca_file.read_bytes()).decode()
        context = {"cluster": "local", "user": user, "namespace": namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": {"server": self.server, "certificate-authority-data": ca}}],
            "users": [{"name": user, "user": {"token": self.token}}],
            "contexts": [{"name": "local", "context": context}],
            "current-context": "local",
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(json.dumps(config, indent=1))  # JSON is YAML
        return path


class Api:
    """A plain synchronous client of the API server, for the cluster's own use."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self._tls = ssl.create_default_context(cafile=credentials.ca_file)

    def get(self, path: str) -> Any:
        """GET a path; `None` when it is not there or the server cannot answer yet."""
        status, answer = self.request("GET", path)
        return answer if status == http.HTTPStatus.OK else None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST an object; a refusal is an error."""
        status, answer = self.request("POST", path, body)
        if status >= http.HTTPStatus.BAD_REQUEST:
            message = answer.get("message") if isinstance(answer, dict) else answer
            raise RuntimeError(f"POST {path}: {status} {message}")
        return answer

    def request(
        self, method: str, path: str, body: dict[str, Any] | str | None = None, *, content_type: str = _JSON
    ) -> tuple[int, Any]:
        """Send one request, text as it is; a server that is not there is status 0."""
        target = urlsplit(self.credentials.server)
        connection = http.client.HTTPSConnection(target.hostname or "", target.port, timeout=10, context=self._tls)
        headers = {"Authorization": f"Bearer {self.credentials.token}", "Content-Type": content_type}
        try:
            connection.request(method, path, json.dumps(body) if isinstance(body, dict) else body, headers)
            answer = connection.getresponse()
            return answer.status, _decoded(answer.read())
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)
        finally:
            connection.close()


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
