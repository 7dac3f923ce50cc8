"""A pod's volumes as folders of this machine.

Each volume is one folder under the pod's own, which containers bind to where they want
it. emptyDirs with a size (their own, or the pod's ephemeral-storage limit) are named apart:
the sandbox mounts a tmpfs of that size there, so that a full disk is a real ENOSPC.
"""

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dev.cluster.node.client import Manifest
from dev.cluster.node.fields import field_value, quantity, resource_value
from dev.cluster.node.objects import MissingObjectError, Objects, config_map_values, secret_values

DEFAULT_MODE = 0o644
TOKEN_SECONDS = 3600
RENEW_AFTER = 0.8  # of a token's life, as kubelets do


@dataclass(slots=True)
class Volumes:
    """The volumes of one pod; `fill` makes them, and later brings them up to date."""

    objects: Objects
    folder: Path
    places: dict[str, Path] = field(default_factory=dict)
    sized: dict[str, int] = field(default_factory=dict)  # folder -> bytes
    _renew_at: dict[Path, float] = field(default_factory=dict)

    async def fill(self, pod: Manifest) -> None:
        """Write what every volume holds; raises `MissingObjectError` for what is not there."""
        for volume in pod["spec"].get("volumes", []):
            place = self.folder / volume["name"]
            self.places[volume["name"]] = await self._fill_one(volume, pod=pod, place=place)

    async def _fill_one(self, volume: Manifest, *, pod: Manifest, place: Path) -> Path:
        if "emptyDir" in volume:
            self._make_empty(volume["emptyDir"], pod=pod, place=place)
            return place
        if "hostPath" in volume:
            return _host_folder(volume["hostPath"]["path"])
        if "persistentVolumeClaim" in volume:
            source = await self.objects.folder_of_claim(volume["persistentVolumeClaim"]["claimName"])
            return _host_folder((source.get("hostPath") or source["local"])["path"])
        files = await self._files(volume, pod=pod, place=place)
        await asyncio.to_thread(_write_files, place, files)
        return place

    def _make_empty(self, source: Manifest, *, pod: Manifest, place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        _open_to(place, (pod["spec"].get("securityContext") or {}).get("fsGroup"))
        limit = source.get("sizeLimit") or _ephemeral_limit(pod)
        if limit or source.get("medium") == "Memory":
            self.sized[str(place)] = int(quantity(limit or 0))

    async def _files(self, volume: Manifest, *, pod: Manifest, place: Path) -> "Files":
        if "projected" in volume:
            sources = volume["projected"].get("sources", [])
            mode = volume["projected"].get("defaultMode", DEFAULT_MODE)
        else:
            sources = [{kind: _as_projection(volume[kind], kind) for kind in SIMPLE if kind in volume}]
            mode = next((volume[kind].get("defaultMode") for kind in SIMPLE if kind in volume), None) or DEFAULT_MODE
        files: Files = {}
        for source in sources:
            files |= await self._projected(source, pod=pod, mode=mode, place=place)
        return files

    async def _projected(self, source: Manifest, *, pod: Manifest, mode: int, place: Path) -> "Files":
        if projection := source.get("secret"):
            found = await self.objects.secret(projection["name"], optional=bool(projection.get("optional")))
            return _items(secret_values(found), projection, mode=mode)
        if projection := source.get("configMap"):
            found = await self.objects.config_map(projection["name"], optional=bool(projection.get("optional")))
            return _items(config_map_values(found), projection, mode=mode)
        if projection := source.get("downwardAPI"):
            return {
                item["path"]: (_downward(item, pod), item.get("mode") or mode) for item in projection.get("items", [])
            }
        if projection := source.get("serviceAccountToken"):
            return await self._token(projection, pod=pod, mode=mode, place=place)
        raise MissingObjectError(f"the process node has no volumes of kind {', '.join(source) or 'unknown'}")

    async def _token(self, projection: Manifest, *, pod: Manifest, mode: int, place: Path) -> "Files":
        path = place / projection["path"]
        if time.time() < self._renew_at.get(path, 0):
            return {}
        seconds = projection.get("expirationSeconds", TOKEN_SECONDS)
        account = pod["spec"].get("serviceAccountName", "default")
        answer = await self.objects.token(account, pod=pod, audience=projection.get("audience"), seconds=seconds)
        self._renew_at[path] = time.time() + RENEW_AFTER * seconds
        return {projection["path"]: (answer["token"].encode(), mode)}


Files = dict[str, tuple[bytes, int]]  # relative path -> content and mode
SIMPLE = ("secret", "configMap", "downwardAPI")


def _as_projection(source: Manifest, kind: str) -> Manifest:
    # A volume's Secret is named by `secretName`, a projection's by `name`.
    return {**source, "name": source["secretName"]} if kind == "secret" else source


def _items(values: Mapping[str, bytes], projection: Manifest, *, mode: int) -> Files:
    items = projection.get("items")
    if items is None:
        return {key: (value, mode) for key, value in values.items()}
    missing = [item["key"] for item in items if item["key"] not in values]
    if missing and not projection.get("optional"):
        raise MissingObjectError(f"{projection['name']} has no key {', '.join(missing)}")
    present = [item for item in items if item["key"] in values]
    return {item["path"]: (values[item["key"]], item.get("mode") or mode) for item in present}


def _downward(item: Manifest, pod: Manifest) -> bytes:
    if reference := item.get("fieldRef"):
        return field_value(pod, reference["fieldPath"]).encode()
    reference = item["resourceFieldRef"]
    return resource_value(pod, reference, container=reference["containerName"]).encode()


def _ephemeral_limit(pod: Manifest) -> str | None:
    limits = [container.get("resources", {}).get("limits", {}) for container in pod["spec"]["containers"]]
    given = [limit["ephemeral-storage"] for limit in limits if "ephemeral-storage" in limit]
    return str(sum(quantity(limit) for limit in given)) if given else None


def _open_to(place: Path, group: int | None) -> None:
    """Let every user of the pod write, as a kubelet does; root alone can give a folder to a group."""
    if group is None or os.geteuid() != 0:
        place.chmod(0o777)
    else:
        os.chown(place, -1, group)
        place.chmod(0o2777)


def _host_folder(path: str) -> Path:
    folder = Path(path)
    if not folder.exists():
        folder.mkdir(parents=True)
    return folder


def _write_files(place: Path, files: Files) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, (content, mode) in files.items():
        _write_atomically(place / name, content, mode=mode)


def _write_atomically(path: Path, content: bytes, *, mode: int) -> None:
    # Readers see the old file or the new one, as with a kubelet's symlinked folders.
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.chmod(mode)
    partial.replace(path)
