"""Files that are generated from the types: written by `make manifests`, compared by `make lint` and a test."""

from __future__ import annotations

import sys
from pathlib import Path

from dev.apidocs import api_reference
from finetune_operator.api.crd import job_crd, profile_crd, render

ROOT = Path(__file__).parents[1]
CRD_FOLDERS = ("manifests/crd", "charts/finetune-operator/files/crds")
API_REFERENCE = "docs/api-reference.md"


def generated() -> dict[str, str]:
    """Return the text of every generated file by its path in the repository."""
    crds = {crd["spec"]["names"]["plural"]: crd for crd in (job_crd(), profile_crd())}
    texts = {f"{folder}/{plural}.yaml": render(crd) for folder in CRD_FOLDERS for plural, crd in crds.items()}
    return {**texts, API_REFERENCE: api_reference(list(crds.values()))}


def outdated(root: Path = ROOT) -> list[str]:
    """Return the paths of generated files that are missing or differ from what the types say now."""
    return [path for path, text in generated().items() if not _holds(root / path, text)]


def _holds(file: Path, text: str) -> bool:
    return file.exists() and file.read_text() == text


def write(root: Path = ROOT) -> None:
    """Write every generated file that is not up to date."""
    for path, text in generated().items():
        if not _holds(root / path, text):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
            print(f"wrote {path}")


def main(arguments: list[str]) -> int:
    """Write the files, or with --check say which ones are out of date."""
    if arguments != ["--check"]:
        write()
        return 0
    stale = outdated()
    for path in stale:
        print(f"{path} is out of date: run `make manifests` and commit the result", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
