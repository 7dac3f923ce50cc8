"""A container's private root, put together from the host's folders.

The process backend has no images: a container sees the machine that the node runs on, so
that this Python and its packages work. But what it writes goes to a tmpfs and vanishes
with it, `/tmp` is its own, and volumes can be mounted where the host has no such folder.

Every top-level folder becomes an overlay: the host's below, a tmpfs above. A folder with
something mounted below it is taken apart instead, since an overlay would show what lies
under the mount (and an ordinary user's namespace refuses it for that reason). The mounts
themselves are shown read-only. Where volumes go, folders are made in the upper layer
before the overlay is there: an ordinary user may not make them afterwards in folders of
root's.
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from dev.cluster.node.sandbox import kernel
from dev.cluster.node.sandbox.spec import ContainerSpec, Mount

OWN = {Path("/proc"), Path("/sys"), Path("/dev"), Path("/tmp")}  # made anew, never taken from the host
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
DEVICE_PATTERNS = ("nvidia*", "dri", "kfd")
SHM_BYTES = 64 << 20  # what container runtimes give; a pod that needs more mounts an emptyDir there


@dataclass(slots=True)
class Root:
    """The root while it is being built, under `staging/root`."""

    staging: Path
    writable: list[Path] = field(default_factory=list)  # our own mounts: read-only if the root is to be

    @property
    def path(self) -> Path:
        """Where the new root is mounted."""
        return self.staging / "root"

    def at(self, path: str | Path) -> Path:
        """Where a path of the container is now."""
        return self.path / Path(path).relative_to("/")


def build(spec: ContainerSpec) -> Path:
    """Build the root; only /proc is left to be mounted, inside the PID namespace."""
    root = Root(Path(spec.staging))
    size = f"size={spec.root_bytes}," if spec.root_bytes else ""
    kernel.mount("tmpfs", root.staging, kind="tmpfs", flags=kernel.MS_NOSUID, options=f"{size}mode=0755")
    root.path.mkdir()
    kernel.bind(root.path, root.path)
    root.writable.append(root.path)
    targets = [Path(os.path.realpath(path)) for path in (spec.working_dir, *(m.target for m in spec.mounts))]
    mounts = _mount_points(hidden=[Path(folder) for folder in spec.hide])
    _show_host(root, Path("/"), targets=targets, mounts=mounts)
    _make_own_folders(root)
    _hide(root, spec)
    for mount in sorted(spec.mounts, key=lambda mount: mount.target.split("/")):
        _mount_volume(root, mount)
    _keep(root, spec)
    root.at(os.path.realpath(spec.working_dir)).mkdir(parents=True, exist_ok=True)
    if spec.read_only_root:
        for place in root.writable:
            kernel.make_read_only(place, recursive=False)
    return root.path


def _show_host(root: Root, folder: Path, *, targets: list[Path], mounts: set[Path]) -> None:
    for entry in sorted(folder.iterdir()):
        if entry in OWN:
            continue
        if entry.is_symlink():
            root.at(entry).symlink_to(entry.readlink())
        elif entry in mounts:
            _show_mount(root, entry)
        elif entry.is_dir() and any(entry in mount.parents for mount in mounts):
            root.at(entry).mkdir()
            _show_host(root, entry, targets=targets, mounts=mounts)
        elif entry.is_dir():
            _show_overlay(root, entry, targets=[target for target in targets if entry in (target, *target.parents)])


def _mount_points(*, hidden: list[Path]) -> set[Path]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    # Field five; blanks and the like are written in octal.
    names = (line.split()[4].encode().decode("unicode_escape") for line in lines)
    points = {Path(name) for name in names} - {Path("/")}
    return {point for point in points if not any(folder in point.parents for folder in hidden)}


def _show_mount(root: Root, place: Path) -> None:
    try:
        root.at(place).mkdir() if place.is_dir() else root.at(place).touch()
        kernel.bind(place, root.at(place))
        kernel.make_read_only(root.at(place), recursive=True)
    except PermissionError:
        pass  # somebody else's mount, which this user cannot even look at


def _show_overlay(root: Root, lower: Path, *, targets: list[Path]) -> None:
    layers = {name: root.staging / name / lower.relative_to("/") for name in ("upper", "work")}
    for layer in layers.values():
        layer.mkdir(parents=True)
    upper = layers["upper"]
    shutil.copymode(lower, upper)
    for target in targets:
        _make_place(upper / target.relative_to(lower), like=target)
    root.at(lower).mkdir()
    options = f"lowerdir={_escaped(lower)},upperdir={upper},workdir={layers['work']},userxattr"
    kernel.mount("overlay", root.at(lower), kind="overlay", options=options)
    root.writable.append(root.at(lower))


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _make_place(path: Path, *, like: Path) -> None:
    # Whether the volume is a file or a folder is known only when it is mounted; a folder
    # that turns out wrong is replaced then.
    if like.exists() and not like.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    else:
        path.mkdir(parents=True, exist_ok=True)


def _make_own_folders(root: Root) -> None:
    for name in ("proc", "sys", "dev", "tmp"):
        root.at(f"/{name}").mkdir()
    root.at("/tmp").chmod(0o1777)
    kernel.bind("/sys", root.at("/sys"))
    kernel.make_read_only(root.at("/sys"), recursive=True)
    found = [Path("/dev", name) for name in DEVICES]
    found += [path for pattern in DEVICE_PATTERNS for path in Path("/dev").glob(pattern)]
    for device in filter(Path.exists, found):
        root.at(device).mkdir() if device.is_dir() else root.at(device).touch()
        kernel.bind(device, root.at(device))
    for name, target in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        root.at(f"/dev/{name}").symlink_to(f"/proc/self/fd{target}")
    root.at("/dev/shm").mkdir()
    options = f"size={SHM_BYTES},mode=1777"
    kernel.mount("tmpfs", root.at("/dev/shm"), kind="tmpfs", flags=kernel.MS_NOSUID, options=options)


def _keep(root: Root, spec: ContainerSpec) -> None:
    """Show what must be seen where it would not be: below /tmp, which is the container's own or a volume of its pod."""
    # Parents first: a checkout that has its .venv inside would else pass for shown once that is.
    for folder in sorted(map(Path, spec.keep)):
        if not _is_shown(root.at(folder), folder):
            root.at(folder).mkdir(parents=True, exist_ok=True)
            kernel.bind(folder, root.at(folder))
            kernel.make_read_only(root.at(folder), recursive=True)


def _is_shown(place: Path, folder: Path) -> bool:
    # An earlier container of the pod has left an empty folder behind in the pod's /tmp.
    return place.exists() and (any(place.iterdir()) or not any(folder.iterdir()))


def _hide(root: Root, spec: ContainerSpec) -> None:
    for folder in map(Path, spec.hide):
        if root.at(folder).exists():
            kernel.mount("tmpfs", root.at(folder), kind="tmpfs", options="size=4k,mode=0700")


def _mount_volume(root: Root, mount: Mount) -> None:
    source, place = Path(mount.source), root.at(os.path.realpath(mount.target))
    if source.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir():
            place.rmdir()
        place.touch()
    kernel.bind(source, place)
    if mount.read_only:
        kernel.make_read_only(place, recursive=True)
