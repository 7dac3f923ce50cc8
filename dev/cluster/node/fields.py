"""The downward API: what a pod may be told about itself, as variables and as files. Pure."""

import math
import os
import re
from decimal import Decimal

from dev.cluster.node.client import Manifest

KEYED = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")
SUFFIXES = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{name: Decimal(1000) ** power for power, name in enumerate("kMGTP", start=1)},
    **{f"{name}i": Decimal(1024) ** power for power, name in enumerate("KMGTP", start=1)},
}
QUANTITY = re.compile(r"([0-9.]+(?:[eE][0-9]+)?)([a-zA-Z]*)")


def quantity(text: str | int | float) -> Decimal:
    """Parse a Kubernetes quantity, such as 500m or 2Gi."""
    match = QUANTITY.fullmatch(str(text))
    if match is None or match[2] not in SUFFIXES:
        raise ValueError(f"{text!r} is no quantity")
    return Decimal(match[1]) * SUFFIXES[match[2]]


def field_value(pod: Manifest, path: str) -> str:
    """Return what a fieldRef stands for; an absent label or annotation is empty."""
    metadata, status = pod["metadata"], pod.get("status", {})
    if keyed := KEYED.fullmatch(path):
        return str((metadata.get(keyed[1]) or {}).get(keyed[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        return _as_file(metadata.get(path.rpartition(".")[2]) or {})
    values = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": pod["spec"].get("nodeName", ""),
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", ""),
        "status.podIP": status.get("podIP", ""),
        "status.podIPs": status.get("podIP", ""),
        "status.hostIP": status.get("hostIP", ""),
        "status.hostIPs": status.get("hostIP", ""),
    }
    return str(values[path])


def resource_value(pod: Manifest, reference: Manifest, *, container: str) -> str:
    """Return what a resourceFieldRef stands for: a limit or request in units of its divisor."""
    name = reference.get("containerName") or container
    every = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    resources = next(item for item in every if item["name"] == name).get("resources", {})
    kind, _, resource = reference["resource"].partition(".")
    given = resources.get(kind, {}).get(resource)
    if given is None:
        given = _of_this_machine(resource) if kind == "limits" else 0
    divisor = quantity(reference.get("divisor") or 1) or Decimal(1)
    return str(math.ceil(quantity(given) / divisor))


def _of_this_machine(resource: str) -> int:
    # Without a limit a container has the node.
    if resource == "cpu":
        return os.cpu_count() or 1
    if resource == "memory":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0


def _as_file(entries: dict[str, str]) -> str:
    quote = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
    return "\n".join(f'{key}="{value.translate(quote)}"' for key, value in sorted(entries.items()))
