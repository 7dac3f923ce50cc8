"""The bill of materials of an image: everything that is installed, by package URL."""

from __future__ import annotations

import json

from dev.images.sbom import Package, bill_of_materials


def test_every_package_is_named_by_its_url() -> None:
    packages = [Package("deb", "libc6", "2.36-9+deb12u13"), Package("pypi", "kopf", "1.45.2")]
    bill = json.loads(bill_of_materials("finetune-operator:0.1.0", packages))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"].items() >= {"name": "finetune-operator", "type": "container"}.items()
    urls = {component["purl"] for component in bill["components"]}
    assert urls == {"pkg:deb/debian/libc6@2.36-9%2Bdeb12u13", "pkg:pypi/kopf@1.45.2"}
