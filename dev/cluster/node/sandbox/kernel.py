"""The handful of system calls that a sandbox needs and Python 3.11 does not offer.

Called through ctypes, so that the node needs neither util-linux nor a compiler. Every
failure is an `OSError` that names the call.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
NAMESPACES = {"user": CLONE_NEWUSER, "mnt": CLONE_NEWNS, "uts": CLONE_NEWUTS, "ipc": CLONE_NEWIPC, "pid": CLONE_NEWPID}

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
LAST_CAPABILITY = 63

AT_FDCWD = -100
AT_RECURSIVE = 0x8000
MOUNT_ATTR_RDONLY = 0x1
SYS_MOUNT_SETATTR = 442  # the same on every architecture, as for all calls added since Linux 5.1
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(source: str | Path, target: str | Path, *, kind: str = "none", flags: int = 0, options: str = "") -> None:
    """Mount a filesystem, or bind a folder to a second place."""
    done = _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(done, f"mount {kind} {source} on {target}")


def bind(source: str | Path, target: str | Path) -> None:
    """Show `source`, with all that is mounted below it, at `target` as well."""
    mount(source, target, flags=MS_BIND | MS_REC)


def make_read_only(target: str | Path, *, recursive: bool) -> None:
    """Make a mount read-only, keeping whatever other flags it has."""
    attributes = _MountAttributes(MOUNT_ATTR_RDONLY, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    size = ctypes.sizeof(attributes)
    done = _libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(target), flags, ctypes.byref(attributes), size)
    _check(done, f"make {target} read-only")


def detach_from_host() -> None:
    """Keep what is mounted from here on out of the host's sight, and the reverse."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)


def change_root(root: str | Path) -> None:
    """Make `root`, a mount, the root of this mount namespace and let go of the old one."""
    os.chdir(root)
    number = SYS_PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(number, b".", b"."), f"pivot_root {root}")
    _check(_libc.umount2(b".", MNT_DETACH), "umount the old root")
    os.chdir("/")


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` names for new ones."""
    _check(_libc.unshare(flags), f"unshare {flags:#x}")


def join(process: int, names: list[str]) -> None:
    """Enter a process's namespaces, the user namespace first if it is another one."""
    paths = {name: Path(f"/proc/{process}/ns/{name}") for name in ("user", *names)}
    if paths["user"].readlink() == Path("/proc/self/ns/user").readlink():
        del paths["user"]
    files = {name: os.open(path, os.O_RDONLY) for name, path in paths.items()}
    for name, file in files.items():
        _check(_libc.setns(file, NAMESPACES[name]), f"join the {name} namespace of {process}")
        os.close(file)


def die_with_parent(parent: int) -> None:
    """Be killed when the parent goes; at once if it has gone already."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "tie the process to its parent")
    if os.getppid() != parent:
        sys.exit(1)


def set_hostname(name: str) -> None:
    """Set the hostname in this UTS namespace."""
    encoded = name.encode()
    _check(_libc.sethostname(encoded, len(encoded)), f"set the hostname {name}")


def drop_capabilities(keep: set[int]) -> None:
    """Give up all capabilities but these: the bounding set is what root has after exec."""
    for number in range(LAST_CAPABILITY + 1):
        if number not in keep:
            _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)  # fails for numbers this kernel does not know


def forbid_new_privileges() -> None:
    """Make setuid programs gain nothing."""
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
