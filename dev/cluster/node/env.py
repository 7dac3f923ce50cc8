"""A container's environment and command line, from its spec and the objects it names."""

import re
from collections.abc import Awaitable, Callable, Mapping

from dev.cluster.node.client import Manifest
from dev.cluster.node.fields import field_value, resource_value
from dev.cluster.node.objects import MissingObjectError, Objects, secret_values

REFERENCE = re.compile(r"\$\$|\$\(([^()]+)\)")


async def environment(
    pod: Manifest, container: Manifest, *, base: Mapping[str, str], objects: Objects
) -> dict[str, str]:
    """Return all variables: the image's, then envFrom, then env, later ones winning.

    Raises `MissingObjectError` for what is named, not optional and not there.
    """
    values = dict(base)
    for source in container.get("envFrom", []):
        values |= await _from_source(source, objects=objects)
    for entry in container.get("env", []):
        value = await _value(entry, pod=pod, container=container, known=values, objects=objects)
        if value is not None:
            values[entry["name"]] = value
    return values


def expanded(text: str, values: Mapping[str, str]) -> str:
    """Replace $(NAME) where the name is known; $$ is a dollar sign that starts no reference."""

    def replacement(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return values.get(match[1], match[0])

    return REFERENCE.sub(replacement, text)


async def _from_source(source: Manifest, *, objects: Objects) -> dict[str, str]:
    prefix = source.get("prefix", "")
    if "secretRef" in source:
        found = await objects.secret(source["secretRef"]["name"], optional=_is_optional(source["secretRef"]))
        data = {key: value.decode(errors="replace") for key, value in secret_values(found).items()}
    else:
        reference = source["configMapRef"]
        found = await objects.config_map(reference["name"], optional=_is_optional(reference))
        data = (found or {}).get("data") or {}
    return {prefix + key: value for key, value in data.items()}


async def _value(
    entry: Manifest, *, pod: Manifest, container: Manifest, known: Mapping[str, str], objects: Objects
) -> str | None:
    source = entry.get("valueFrom")
    if not source:
        return expanded(entry.get("value", ""), known)
    if reference := source.get("fieldRef"):
        return field_value(pod, reference["fieldPath"])
    if reference := source.get("resourceFieldRef"):
        return resource_value(pod, reference, container=container["name"])
    if reference := source.get("secretKeyRef"):
        return await _key(reference, kind="Secret", read=objects.secret)
    return await _key(source["configMapKeyRef"], kind="ConfigMap", read=objects.config_map)


async def _key(reference: Manifest, *, kind: str, read: "Callable[..., Awaitable[Manifest | None]]") -> str | None:
    found = await read(reference["name"], optional=_is_optional(reference))
    if kind == "Secret":
        value = secret_values(found).get(reference["key"])
        text = None if value is None else value.decode(errors="replace")
    else:
        text = ((found or {}).get("data") or {}).get(reference["key"])
    if text is None and not _is_optional(reference):
        raise MissingObjectError(f"couldn't find key {reference['key']} in {kind} {reference['name']}")
    return text


def _is_optional(reference: Manifest) -> bool:
    return bool(reference.get("optional"))
