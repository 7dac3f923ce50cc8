"""The cluster's jobs, by the user's own kubectl: its contexts, credentials and plugins hold here as well."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune_operator.api import constants as c
from finetune_operator.cli.completion import complete_contexts, complete_jobs, complete_namespaces

_KIND = f"{c.JOB_PLURAL}.{c.GROUP}"


class KubectlError(Exception):
    """What kubectl said when it failed, or that there is none."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Calls kubectl in a context and namespace; those of the user's configuration when None."""

    namespace: str | None = None
    context: str | None = None

    def job(self, name: str) -> dict[str, Any]:
        """Return a FineTuneJob. Raises KubectlError."""
        found: dict[str, Any] = json.loads(self._call("get", _KIND, name, "-o", "json"))
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """Return all FineTuneJobs of the namespace. Raises KubectlError."""
        found: list[dict[str, Any]] = json.loads(self._call("get", _KIND, "-o", "json"))["items"]
        return found

    def names(self, resource: str) -> list[str]:
        """Return the names of all objects of a kind, if the server answers soon. Raises KubectlError."""
        said = self._call("get", resource, "-o", "name", "--request-timeout=2s")
        return [line.partition("/")[2] for line in said.splitlines()]

    def contexts(self) -> list[str]:
        """Return the contexts of the kubeconfig. Raises KubectlError."""
        return self._call("config", "get-contexts", "-o", "name").splitlines()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the Events about a job, oldest first. Raises KubectlError."""
        selector = f"involvedObject.kind={c.JOB_KIND},involvedObject.name={name}"
        found = json.loads(self._call("get", "events", "--field-selector", selector, "-o", "json"))["items"]
        return sorted(found, key=lambda event: str(event.get("lastTimestamp") or ""))

    def pods(self, name: str, *, stage: str) -> list[str]:
        """Return the names of a job's pods of a stage, the newest attempt's last. Raises KubectlError."""
        selector = f"{c.LABEL_JOB}={name},{c.LABEL_STAGE}={stage}"
        said = self._call("get", "pods", "-l", selector, "--sort-by=.metadata.creationTimestamp", "-o", "name")
        return [line.removeprefix("pod/") for line in said.splitlines()]

    def patch(self, name: str, patch: dict[str, Any]) -> None:
        """Merge a patch into a FineTuneJob. Raises KubectlError."""
        self._call("patch", _KIND, name, "--type=merge", "-p", json.dumps(patch))

    def delete(self, name: str) -> None:
        """Delete a FineTuneJob. Raises KubectlError."""
        self._call("delete", _KIND, name)

    def stream(self, *words: str) -> int:
        """Run kubectl with this process's output; return its exit code. Raises KubectlError."""
        return subprocess.run([_kubectl(), *self._where(), *words], check=False).returncode

    def lines(self, *words: str, each: Callable[[str], None]) -> int:
        """Run kubectl and hand on each line that it prints; return its exit code. Raises KubectlError."""
        command = [_kubectl(), *self._where(), *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as running:
            for line in running.stdout or ():
                each(line.rstrip("\n"))
        return running.returncode

    def _call(self, *words: str) -> str:
        done = subprocess.run([_kubectl(), *self._where(), *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise KubectlError(done.stderr.strip().removeprefix("Error from server ") or f"exit code {done.returncode}")
        return done.stdout

    def _where(self) -> list[str]:
        context = [f"--context={self.context}"] if self.context else []
        return [*context, *([f"--namespace={self.namespace}"] if self.namespace else [])]


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says where the jobs are, with kubectl's names."""
    namespace = parser.add_argument("-n", "--namespace", metavar="NAME", help="namespace (default: kubectl's)")
    context = parser.add_argument(
        "--context", metavar="NAME", help="context of the kubeconfig (default: the current one)"
    )
    _completed(namespace, complete_namespaces)
    _completed(context, complete_contexts)


def add_job_name(parser: argparse.ArgumentParser, **more: Any) -> None:
    """Add the name of a job in the cluster."""
    name = parser.add_argument("name", metavar="NAME", **{"help": "name of the FineTuneJob", **more})
    _completed(name, complete_jobs)


def _completed(action: argparse.Action, by: Callable[..., list[str]]) -> None:
    action.completer = by  # type: ignore[attr-defined] # where argcomplete looks


def kubectl_of(arguments: argparse.Namespace) -> Kubectl:
    """Return kubectl as the arguments say."""
    return Kubectl(namespace=arguments.namespace, context=arguments.context)


def complain(command: str, error: Exception) -> int:
    """Say what is wrong; return the exit code."""
    print(f"finetune {command}: {error}", file=sys.stderr)
    return 1


def _kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        raise KubectlError("kubectl is not on PATH: commands about a cluster's jobs need it")
    return found
