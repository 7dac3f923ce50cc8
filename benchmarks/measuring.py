"""What benchmarks of control planes share: a fast client, the writes that the API server counts, a process' costs."""

from __future__ import annotations

import collections
import http.client
import json
import os
import re
import ssl
from pathlib import Path
from typing import Any

from dev.cluster.local import LocalCluster

Body = dict[str, Any]
_UNCOUNTED = {"leases", "subjectaccessreviews", "tokenreviews", "selfsubjectaccessreviews"}


class Api:
    """One keep-alive connection to the API server, as fast as Python's standard library is."""

    def __init__(self, cluster: LocalCluster) -> None:
        credentials = cluster.control_plane.credentials("admin") if cluster.control_plane else None
        assert credentials is not None
        host, _, port = credentials.server.removeprefix("https://").partition(":")
        context = ssl.create_default_context(cafile=str(credentials.ca_file))
        self._connection = http.client.HTTPSConnection(host, int(port), context=context)
        self._headers = {"Authorization": f"Bearer {credentials.token}"}

    def call(self, method: str, path: str, body: Body | None = None) -> bytes:
        """Return the answer's body."""
        response = self.open(method, path, body)
        return response.read()

    def open(self, method: str, path: str, body: Body | None = None) -> http.client.HTTPResponse:
        """Return the answer, its body unread."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {**self._headers, "Content-Type": kind}
        self._connection.request(method, path, json.dumps(body) if body else None, headers)
        response = self._connection.getresponse()
        if response.status >= http.client.MULTIPLE_CHOICES:
            raise RuntimeError(f"{method} {path}: {response.status} {response.read()[:300]!r}")
        return response


def writes(cluster: LocalCluster) -> collections.Counter[str]:
    """Return the writes that the API server has served, by verb and resource; leases and reviews left out."""
    counted: collections.Counter[str] = collections.Counter()
    for line in Api(cluster).call("GET", "/metrics").decode().splitlines():
        if line.startswith("apiserver_request_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if labels["verb"] in ("POST", "PUT", "PATCH", "APPLY", "DELETE") and labels["resource"] not in _UNCOUNTED:
                counted[f"{labels['verb']} {labels['resource']}/{labels['subresource']}"] += int(
                    float(line.rsplit(" ", 1)[1])
                )
    return counted


def cpu_ms(pid: int) -> float:
    """Return the CPU time that a process has used, in ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int, field: str = "VmHWM") -> float:
    """Return the most memory that a process has held, in MB."""
    found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def quantile(ordered: list[float], share: float) -> float:
    """Return a quantile of ordered values."""
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)
