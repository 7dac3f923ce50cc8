"""Which container engine `make images` takes: podman, or a docker whose daemon answers; else what to install."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.images.engine import ImageError, find_engine


def put(folder: Path, name: str, script: str) -> None:
    """Put a program on the PATH."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is the whole PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize(
    ("programs", "taken"),
    [
        pytest.param({"podman": "exit 0", "docker": "exit 0"}, "podman", id="podman before docker"),
        pytest.param({"docker": "exit 0"}, "docker", id="docker where it is alone"),
    ],
)
def test_the_engine(tmp_path: Path, path: Path, programs: dict[str, str], taken: str) -> None:
    for name, script in programs.items():
        put(path, name, script)
    assert Path(find_engine(tmp_path / "run").program).name == taken


def test_a_docker_without_its_daemon_is_no_engine(tmp_path: Path, path: Path) -> None:
    put(path, "docker", "exit 1")
    with pytest.raises(ImageError, match=r"docker's daemon does not answer.*apt-get install .*podman"):
        find_engine(tmp_path / "run")
