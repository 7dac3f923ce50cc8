"""One container: join the pod, build the root, become the command.

Two processes. The outer one stays in the host's PID namespace, waits, and ends with the
container's exit code (128 and the signal's number if it was killed). The inner one is
process 1 of a PID namespace of its own, as in any container: when it ends the kernel kills
whatever it has started, and signals it has no handler for do not touch it.

The start is reported on a pipe: the inner process's id, then either nothing (exec has
closed the pipe) or what went wrong.
"""

import contextlib
import os
import signal
from pathlib import Path

from dev.cluster.node.sandbox import kernel, root
from dev.cluster.node.sandbox.spec import ContainerSpec

FIRST_TO_GO = "1000"  # for the kernel's own memory killer: never the control plane


def main(path: Path) -> None:
    """Run a container and pass its exit code on."""
    spec = ContainerSpec.read(path)
    path.unlink()  # it may hold secrets, and is not needed any more
    kernel.die_with_parent(spec.parent)
    kernel.join(spec.pod, ["mnt", "uts", "ipc"])
    kernel.unshare(kernel.CLONE_NEWPID)
    kernel.die_with_parent(spec.parent)
    inner = os.fork()
    if inner == 0:
        _become_container(spec)
    os.write(spec.status, f"pid {inner}\n".encode())
    os.close(spec.status)
    _, status = os.waitpid(inner, 0)
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def _become_container(spec: ContainerSpec) -> None:
    try:
        kernel.die_with_parent(os.getppid())  # 0, as seen from inside the new PID namespace
        _enter_root(spec)
        _give_up_rights(spec)
        os.set_inheritable(spec.status, False)
        os.execvpe(spec.command[0], spec.command, spec.environment)  # noqa: S606
    except BaseException as error:
        os.write(spec.status, f"error {error}\n".encode())
        os._exit(128)


def _enter_root(spec: ContainerSpec) -> None:
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.detach_from_host()
    new = root.build(spec)
    try:
        kernel.mount("proc", new / "proc", kind="proc", flags=kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    except PermissionError:  # inside a container that masks parts of /proc: show what there is
        kernel.bind("/proc", new / "proc")
    kernel.change_root(new)
    os.chdir(spec.working_dir)


def _give_up_rights(spec: ContainerSpec) -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)
    kernel.drop_capabilities(set(spec.capabilities))
    kernel.forbid_new_privileges()
    os.umask(0o022)
    # What Python ignores for its own sake, a command expects to be as it is by default.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
