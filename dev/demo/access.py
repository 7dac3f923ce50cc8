"""The ways into a running demo: what the part that shows it needs, wherever the cluster's processes hang."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dev.cluster import build
from dev.cluster.parts import plain_environment


@dataclass(frozen=True, slots=True)
class Access:
    """A cluster's kubeconfig and an object store's variables."""

    kubeconfig: Path | None
    """None where only the object store runs."""
    s3: Mapping[str, str]

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl and return what it printed. Raises CalledProcessError, its stderr with it."""
        done = subprocess.run(
            self.kubectl_command(*arguments), env=self._env(), capture_output=True, text=True, check=True
        )
        return done.stdout

    def kubectl_stream(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a kubectl that prints for as long as it runs."""
        return subprocess.Popen(
            self.kubectl_command(*arguments),
            env=self._env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to handle
        )

    def kubectl_command(self, *arguments: str) -> list[str]:
        """Return the command line."""
        return [str(build.assets() / "kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]

    def exports(self) -> str:
        """Return the lines that reach it from a shell, for people and for `eval`."""
        variables = ({"KUBECONFIG": str(self.kubeconfig)} if self.kubeconfig else {}) | dict(self.s3)
        return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())

    def _env(self) -> dict[str, str]:
        cache = {"KUBECACHEDIR": str(self.kubeconfig.parent / "kubectl-cache")} if self.kubeconfig else {}
        return plain_environment(**cache)
