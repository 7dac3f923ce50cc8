"""A container's mounts: its volumeMounts, hosts file and termination message file. Pure."""

from collections.abc import Mapping
from pathlib import Path

from dev.cluster.node.client import Manifest
from dev.cluster.node.env import expanded
from dev.cluster.node.sandbox.spec import Mount

DEFAULT_MESSAGE_PATH = "/dev/termination-log"
USUAL = {  # what container runtimes leave unless told otherwise, by number
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "NET_BIND_SERVICE": 10,
    "NET_RAW": 13,
    "SYS_CHROOT": 18,
    "MKNOD": 27,
    "AUDIT_WRITE": 29,
    "SETFCAP": 31,
}


def mounts(
    container: Manifest, *, places: Mapping[str, Path], environment: Mapping[str, str], hosts: Path, message: Path
) -> list[Mount]:
    """Return everything that is mounted into a container's root."""
    wanted = [_volume_mount(item, places, environment) for item in container.get("volumeMounts", [])]
    wanted.append(Mount(str(hosts), "/etc/hosts"))
    wanted.append(Mount(str(message), container.get("terminationMessagePath") or DEFAULT_MESSAGE_PATH))
    return wanted


def capabilities(container: Manifest) -> list[int]:
    """Return the numbers of the capabilities that a container keeps: never more than the usual ones."""
    asked = (container.get("securityContext") or {}).get("capabilities") or {}
    dropped = {name.removeprefix("CAP_") for name in asked.get("drop") or []}
    added = {name.removeprefix("CAP_") for name in asked.get("add") or []}
    return [number for name, number in USUAL.items() if name in added or not dropped & {name, "ALL"}]


def _volume_mount(item: Manifest, places: Mapping[str, Path], environment: Mapping[str, str]) -> Mount:
    source = places[item["name"]]
    below = item.get("subPath") or expanded(item.get("subPathExpr", ""), environment)
    if below:
        source = source / below
        if not source.exists():
            source.mkdir(parents=True)
    return Mount(str(source), item["mountPath"], bool(item.get("readOnly")))
