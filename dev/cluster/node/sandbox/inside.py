"""Run a command inside a running container, for exec probes and hooks."""

import json
import os
from pathlib import Path

from dev.cluster.node.sandbox import kernel


def main(path: Path) -> None:
    """Join the container's namespaces, run the command, pass its exit code on."""
    spec = json.loads(path.read_text())
    path.unlink()
    kernel.die_with_parent(spec["parent"])
    kernel.join(spec["process"], ["ipc", "uts", "pid", "mnt"])
    child = os.fork()  # a PID namespace is joined by children only
    if child == 0:
        try:
            kernel.forbid_new_privileges()
            os.execvpe(spec["command"][0], spec["command"], spec["environment"])  # noqa: S606
        except OSError as error:
            print(error, flush=True)
            os._exit(126)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
