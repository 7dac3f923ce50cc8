"""What is in an image, as a CycloneDX bill of materials: Debian packages and Python distributions.

The image is asked, not the pins: what counts is what was installed, base image included.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from dev.images.engine import Engine

# Runs inside the image: one JSON list of [kind, name, version].
_ASK = """
import glob, importlib.metadata, json, subprocess, sys
found = [["pypi", one.metadata["Name"], one.version]
         for one in importlib.metadata.distributions(path=[*sys.path, *glob.glob("/opt/app")])]
query = ["dpkg-query", "-W", "-f", "${Package}\\t${Version}\\n"]
try:
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
except OSError:
    lines = []
print(json.dumps(found + [["deb", *line.split("\\t")] for line in lines]))
"""


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """Something that is installed in an image."""

    kind: Literal["deb", "pypi"]
    name: str
    version: str


def packages_of(engine: Engine, image: str) -> list[Package]:
    """Ask an image what is installed in it."""
    command = ("run", "--rm", "--network=none", "--entrypoint=", image, "python", "-c", _ASK)
    return sorted({Package(*one) for one in json.loads(engine.run(*command, capture=True))})


def bill_of_materials(image: str, packages: Iterable[Package]) -> str:
    """Return CycloneDX 1.6 JSON: the image, and a component with its package URL for everything in it."""
    name, _, version = image.rpartition(":")
    bom = Bom(components=_components(packages))
    bom.metadata.component = root = Component(name=name, version=version, type=ComponentType.CONTAINER)
    bom.register_dependency(root, bom.components)
    outputter = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    return outputter.output_as_string(indent=1)


def _components(packages: Iterable[Package]) -> Iterator[Component]:
    for one in packages:
        url = PackageURL(one.kind, "debian" if one.kind == "deb" else None, one.name, one.version)
        yield Component(
            name=one.name, version=one.version, type=ComponentType.LIBRARY, purl=url, bom_ref=url.to_string()
        )
