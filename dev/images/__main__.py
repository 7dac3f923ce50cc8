"""`python -m dev.images build|check`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from dev.images.base import debian_base
from dev.images.engine import Engine, ImageError, find_engine, scratch
from dev.images.on_cluster import check_operator
from dev.images.registry import secret_flags
from dev.images.sbom import bill_of_materials, packages_of

ROOT = Path(__file__).parents[2]
RUN_DIR = ROOT / ".run" / "images"
TARGETS = ("operator", "trainer")

# As the manifests run them: not root, nothing writable but /tmp, no capabilities, no way to get any.
_HARDENED = (
    "--user=10001:10001",
    "--read-only",
    "--tmpfs=/tmp:rw,size=64m",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
)
_CHECKS = {
    "operator": (("finetune", "--help"), ("python", "-m", "finetune_operator", "--version")),
    "trainer": (
        ("python", "-m", "finetune_trainer", "--help"),
        ("python", "-c", "import torch, transformers, trl, peft, bitsandbytes; print(torch.__version__)"),
    ),
}


def image_name(target: str) -> str:
    """Return the image's name with this project's version, as the manifests have it."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return f"finetune-{target}:{version}"


def build(engine: Engine, base_image: str | None, targets: list[str]) -> None:
    """Build the images one after the other, and say what came out."""
    base = base_image or debian_base(engine, RUN_DIR)
    with scratch(RUN_DIR) as folder:
        secrets = secret_flags(Path(folder))
        for target in targets:
            began = time.monotonic()
            engine.run("build", "--network=host", *secrets, *_build_flags(base, target), str(ROOT))
            _report(engine, target, time.monotonic() - began)
            _write_bill(engine, target)


def _build_flags(base: str, target: str) -> list[str]:
    name = image_name(target)
    version = name.rpartition(":")[2]
    arguments = {"BASE_IMAGE": base, "VERSION": version, "REVISION": _revision()}
    flags = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    return ["--target", target, "--tag", name, *flags]


def _revision() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _report(engine: Engine, target: str, seconds: float) -> None:
    size = int(engine.run("image", "inspect", "--format={{.Size}}", image_name(target), capture=True))
    print(f"{image_name(target)}: {size / 1e6:.0f} MB, built in {seconds:.0f} s", flush=True)


def _write_bill(engine: Engine, target: str) -> None:
    """Say what is in an image, in a file beside the build's others."""
    image = image_name(target)
    packages = packages_of(engine, image)
    path = RUN_DIR / f"{target}.cdx.json"
    path.write_text(bill_of_materials(image, packages))
    print(f"{path.relative_to(ROOT)}: {len(packages)} packages (CycloneDX)", flush=True)


def check(engine: Engine, targets: list[str]) -> None:
    """Run each image's commands under the manifests' restrictions."""
    for target in targets:
        for command in _CHECKS[target]:
            print(f"{image_name(target)}: {' '.join(command)}", flush=True)
            engine.run("run", "--rm", "--network=none", *_HARDENED, "--entrypoint=", image_name(target), *command)
    if "operator" in targets:
        with scratch(RUN_DIR) as folder:
            check_operator(engine, image_name("operator"), _HARDENED, Path(folder))


def main() -> int:
    """Run one command; errors that a user can act on are shown without a traceback."""
    parser = argparse.ArgumentParser(prog="python -m dev.images", description="Build and try the images.")
    parser.add_argument("command", choices=("build", "check"))
    parser.add_argument("--base-image", help="image with python3 to build on; one is made by debootstrap when absent")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one")
    options = parser.parse_args()
    targets = options.target or list(TARGETS)
    try:
        engine = find_engine(RUN_DIR)
        if options.command == "build":
            build(engine, options.base_image, targets)
        else:
            check(engine, targets)
    except ImageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
