"""The pause process of a pod: it holds what its containers share, and does nothing.

It ends when the node closes its standard input, and is killed when the node dies; its
mounts go with the last process that uses them.
"""

import os
import sys
from pathlib import Path

from dev.cluster.node.sandbox import kernel
from dev.cluster.node.sandbox.spec import PodSpec

SHARED = kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC


def main(path: Path) -> None:
    """Set the pod up, say so, and wait."""
    spec = PodSpec.read(path)
    kernel.die_with_parent(spec.parent)
    enter_namespaces()
    kernel.detach_from_host()
    kernel.set_hostname(spec.hostname)
    for folder, size in spec.sized.items():
        options = f"size={size},mode=0777"
        kernel.mount("tmpfs", folder, kind="tmpfs", flags=kernel.MS_NOSUID | kernel.MS_NODEV, options=options)
    kernel.die_with_parent(spec.parent)  # again: a new user namespace has undone it
    print("ready", flush=True)
    sys.stdin.read()


def enter_namespaces() -> None:
    """Make the pod's namespaces, inside a user namespace where we may not make them directly."""
    user, group = os.geteuid(), os.getegid()
    try:
        kernel.unshare(SHARED)
    except PermissionError:
        kernel.unshare(SHARED | kernel.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        # As themselves: files keep their owner, and exec gives up all capabilities.
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
