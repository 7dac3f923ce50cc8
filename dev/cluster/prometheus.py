"""Prometheus and promtool, Go modules, built once and cached: rules checked and tested, and queries on real metrics.

with Prometheus(run_dir, targets={"operator": "127.0.0.1:9090"}) as prometheus:
    prometheus.query("sum by (phase) (finetune_jobs)")
"""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from dev.cluster.build import PROMETHEUS, PROMTOOL, built
from dev.cluster.parts import Part, plain_environment
from dev.cluster.ports import free_ports

READY_TIMEOUT = 30.0


def promtool(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool, `text` on its standard input."""
    command = [str(built(PROMTOOL) / "promtool"), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


class Prometheus:
    """A Prometheus on loopback that scrapes every second, as a context manager."""

    def __init__(self, run_dir: Path, *, targets: Mapping[str, str], labels: Mapping[str, str] | None = None) -> None:
        """`targets` are host:port by the name of the scrape's job; `labels` are put on all of them, as a pod's are."""
        self._folder = run_dir.absolute() / "prometheus"
        self._targets, self._labels = targets, labels or {}
        self._port = 0
        self._part: Part | None = None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of a query, now. Raises ValueError with Prometheus' own words if it is none."""
        address = f"http://127.0.0.1:{self._port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{expression}: {error.read().decode()}") from error
        return found

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        config = self._folder / "prometheus.yml"
        config.write_text(json.dumps(self._config()))  # JSON is YAML
        (self._port,) = free_ports(1)
        command = [
            *(str(built(PROMETHEUS) / "prometheus"), f"--config.file={config}", "--log.level=warn"),
            *(f"--storage.tsdb.path={self._folder / 'data'}", f"--web.listen-address=127.0.0.1:{self._port}"),
        ]
        env = plain_environment(HOME=str(self._folder), TMPDIR=str(self._folder))
        self._part = Part("Prometheus", command, log=self._folder / "prometheus.log", env=env)
        self._part.start()
        self._part.wait_ready(self._is_ready, timeout=READY_TIMEOUT)
        return self

    def __exit__(self, *_: object) -> None:
        if self._part:
            self._part.stop(patience=2)

    def _config(self) -> dict[str, object]:
        scrapes = [
            {"job_name": name, "static_configs": [{"targets": [target], "labels": dict(self._labels)}]}
            for name, target in self._targets.items()
        ]
        return {"global": {"scrape_interval": "1s"}, "scrape_configs": scrapes}

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=2):
                return True
        except OSError:
            return False
