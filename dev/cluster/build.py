"""The binaries of the control plane, built once and kept in the user's cache folder.

Nobody offers Kubernetes' server binaries as a package, but its source is a Go module, and
so is Helm's. The cache is keyed by what goes in (go.mod, go.sum, main.go), so every
checkout with the same pins shares one build. Binaries that are given are used instead:
first the folder that `KUBEBUILDER_ASSETS` names, then those on PATH; each only if all five
are there, because parts of different versions are not a cluster anyone runs.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.progress import Progress
from dev.cluster.toolchain import BuildError, cache_folder, find_go, locked

HERE = Path(__file__).parent
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")


@dataclass(frozen=True, slots=True)
class GoModule:
    """A Go module beside this file, what to build of it and the names it answers to."""

    name: str
    folder: Path
    package: str
    names: tuple[str, ...]
    variables: Mapping[str, str]
    tags: tuple[str, ...] = ()

    def key(self) -> str:
        """Name the build after everything that goes into it."""
        digest = hashlib.sha256(f"{platform.machine()} {self.package} {self.names} {self.variables}".encode())
        digest.update("".join(self.tags).encode())
        for file in ("go.mod", "go.sum", "main.go"):
            if (self.folder / file).exists():
                digest.update((self.folder / file).read_bytes())
        return f"{self.name}-{digest.hexdigest()[:16]}"

    def flags(self) -> list[str]:
        """Flags of `go build`: without the versions kubectl cannot parse the server's answer."""
        stamps = " ".join(f"-X {name}={value}" for name, value in self.variables.items())
        return ["-trimpath", "-ldflags", f"-s -w {stamps}", *(["-tags", ",".join(self.tags)] if self.tags else [])]


CONTROL_PLANE = GoModule(
    name="controlplane",
    folder=HERE,
    package=".",
    names=COMPONENTS,
    variables={
        "k8s.io/component-base/version.gitVersion": "v1.36.4",
        "k8s.io/component-base/version.gitMajor": "1",
        "k8s.io/component-base/version.gitMinor": "36",
    },
)
HELM = GoModule(
    name="helm",
    folder=HERE / "helm",
    package="helm.sh/helm/v4/cmd/helm",
    names=("helm",),
    variables={"helm.sh/helm/v4/internal/version.version": "v4.3.1"},
)
FAKE_GCS = GoModule(
    name="fake-gcs-server",
    folder=HERE / "gcs",
    package="github.com/fsouza/fake-gcs-server",
    names=("fake-gcs-server",),
    variables={},
)
GITOPS_HEALTH = GoModule(
    name="gitops-health", folder=HERE / "gitops", package=".", names=("gitops-health",), variables={}
)
PROMTOOL, PROMETHEUS = (
    GoModule(
        name=name,
        folder=HERE / "prometheus",
        package=f"github.com/prometheus/prometheus/cmd/{name}",
        names=(name,),
        variables={},
        tags=("remove_all_sd",),  # service discovery in a dozen clouds is two thirds of the code
    )
    for name in ("promtool", "prometheus")
)


def assets() -> Path:
    """Return a folder with all five components, building them if nothing else offers them."""
    return _given_folder() or _folder_of_path() or built(CONTROL_PLANE)


def helm() -> Path:
    """Return Helm, always our own build: its version decides how charts render."""
    return built(HELM) / "helm"


def link_tools(folder: Path) -> None:
    """Put `kubectl` and `helm` into a folder that is on the developer's PATH."""
    for tool in (assets() / "kubectl", helm()):
        link = folder / tool.name
        link.unlink(missing_ok=True)
        link.symlink_to(tool)


def built(module: GoModule) -> Path:
    """Return the folder with the module's binary under all its names; build it if need be."""
    target = cache_folder() / module.key()
    if not target.exists():
        with locked(module.name):
            if not target.exists():  # somebody else may have built it while we waited
                _build(module, target)
    return target


def _given_folder() -> Path | None:
    given = os.environ.get("KUBEBUILDER_ASSETS")
    if not given:
        return None
    missing = [name for name in COMPONENTS if not Path(given, name).exists()]
    if missing:
        print(f"KUBEBUILDER_ASSETS has no {', '.join(missing)}: not used", file=sys.stderr)
    return None if missing else Path(given)


def _folder_of_path() -> Path | None:
    found = {name: shutil.which(name) for name in COMPONENTS}
    folders = {Path(path).parent for path in found.values() if path}
    return folders.pop() if all(found.values()) and len(folders) == 1 else None


def _build(module: GoModule, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=f"{module.name}.") as partial:
        binary = Path(partial, "bin", module.name)
        binary.parent.mkdir()
        _compile(module, binary)
        for name in module.names:
            if name != module.name:
                binary.with_name(name).symlink_to(module.name)
        binary.parent.rename(target)


def _compile(module: GoModule, binary: Path) -> None:
    go = find_go()
    progress = Progress(f"building {module.name}", total=_packages_to_compile(go, module))
    command = [go, "build", "-v", *module.flags(), "-o", str(binary), module.package]
    said: list[str] = []
    with subprocess.Popen(command, cwd=module.folder, env=_go_env(), stderr=subprocess.PIPE, text=True) as process:
        ticking = threading.Event()
        threading.Thread(target=_tick, args=(progress, ticking), daemon=True).start()
        for line in process.stderr or ():
            said.append(line)
            if not line.startswith("go: "):  # a download, not a package
                progress.advance()
        ticking.set()
    progress.finish("failed" if process.returncode else "done")
    if process.returncode:
        raise BuildError(f"go build of {module.name} failed:\n{''.join(said[-25:])}")


def _tick(progress: Progress, stop: threading.Event) -> None:
    # Linking is one long step without output: the clock goes on.
    while not stop.wait(1):
        progress.show()


def _packages_to_compile(go: str, module: GoModule) -> int:
    stale = "{{if .Stale}}{{.ImportPath}}{{end}}"
    command = [go, "list", "-deps", *module.flags(), "-f", stale, module.package]
    listed = subprocess.run(command, cwd=module.folder, env=_go_env(), stdout=subprocess.PIPE, text=True, check=False)
    return len(listed.stdout.split())


def _go_env() -> dict[str, str]:
    return os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
