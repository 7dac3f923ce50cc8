"""Promises about the repository itself."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dev.generated import outdated

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", ["operator", "trainer"])
def test_the_source_folders_are_no_packages(folder):
    """A package called `operator` hides the standard library's: Python itself would not start."""
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("module", ["finetune_operator.main", "finetune_operator.cli.__main__"])
def test_the_operator_s_side_never_imports_the_trainer_s_libraries(module):
    """Half a second against ten, and 120 MB against a gigabyte."""
    heavy = {"torch", "transformers", "trl", "peft", "datasets", "finetune_trainer"}
    code = f"import {module}, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert module in loaded
    assert not heavy & set(loaded)


def test_generated_files_are_up_to_date():
    assert outdated() == [], "run `make manifests` and commit the result"


def test_the_pins_have_hashes_and_no_addresses():
    for file in (ROOT / "requirements").glob("*.txt"):
        text = file.read_text()
        assert "://" not in text, file.name
        assert len(re.findall(r"^[a-z0-9].*==", text, re.MULTILINE)) <= text.count("--hash=sha256:"), file.name


def test_the_images_install_what_was_tested():
    tested = pins("dev")
    for image in ("operator", "trainer", "bootstrap"):
        assert pins(image).items() <= tested.items(), image


def pins(name):
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    found = (re.match(r"([A-Za-z0-9._-]+)(?:\[.*?\])?==([^ ;]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def test_one_version_everywhere():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    chart = yaml.safe_load((ROOT / "charts/finetune-operator/Chart.yaml").read_text())
    assert {chart["version"], chart["appVersion"]} == {version}
    deployment = (ROOT / "manifests/operator/deployment.yaml").read_text()
    assert f"finetune-operator:{version}" in deployment
    assert f"finetune-trainer:{version}" in deployment


def test_every_make_target_is_explained():
    makefile = (ROOT / "Makefile").read_text()
    explained = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split())
    assert phony - explained == {"tools"}
