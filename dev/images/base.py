"""A base image where no registry can be reached: Debian by debootstrap, with Python and nothing to build with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from dev.images.engine import Engine, ImageError, install_hint, scratch

SUITE = "bookworm"  # its python3 is 3.11
NAME = f"localhost/finetune-base:{SUITE}"

_APT_SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources")
_LEFTOVERS = ("var/cache/apt", "var/lib/apt/lists", "var/log", "usr/share/doc", "usr/share/man", "usr/share/locale")


def debian_base(engine: Engine, run_dir: Path) -> str:
    """Return the name of the base image, made once."""
    if not engine.has_image(NAME):
        _require_debootstrap()
        with scratch(run_dir) as folder:
            _bootstrap(Path(folder, "rootfs"))
            _import(engine, Path(folder, "rootfs"))
    return NAME


def _require_debootstrap() -> None:
    if shutil.which("debootstrap") is None:
        raise ImageError(f"no BASE_IMAGE was given, and none can be made: {install_hint('debootstrap')}")
    if os.geteuid() != 0:
        raise ImageError("debootstrap needs root: give BASE_IMAGE=..., or run `make images` as root")


def _bootstrap(rootfs: Path) -> None:
    command = ["debootstrap", "--variant=minbase", "--include=python3", SUITE, str(rootfs), *_mirror()]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise ImageError(f"debootstrap failed:\n{done.stdout[-2000:]}")
    for folder in _LEFTOVERS:
        for entry in (rootfs / folder).iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _mirror() -> list[str]:
    """Return the mirror that this machine's apt uses; debootstrap has its own where none is found."""
    texts = [Path(file).read_text() for file in _APT_SOURCES if Path(file).exists()]
    found = re.search(
        r"^(?:URIs:|deb)\s+(?:\[.*?\]\s+)?(https?://\S+/debian)/?(?:\s|$)", "\n".join(texts), re.MULTILINE
    )
    return [found[1]] if found else []


def _import(engine: Engine, rootfs: Path) -> None:
    tar = ["tar", "-C", str(rootfs), "--numeric-owner", "-c", "."]
    with subprocess.Popen(tar, stdout=subprocess.PIPE) as packing:
        command = [engine.program, "import", "-", NAME]
        done = subprocess.run(command, stdin=packing.stdout, env=engine.env, stdout=subprocess.DEVNULL, check=False)
    if done.returncode or packing.returncode:
        raise ImageError(f"{engine.program} import failed")
