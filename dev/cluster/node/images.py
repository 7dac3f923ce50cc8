"""Images, which are only names here: what a name stands for, and which names are not to be had.

Every image stands for this machine with this Python first on PATH, unless the map says
otherwise. The tag `missing` never exists, and neither does a name outside the allowed
patterns: such pods wait in ErrImagePull as they would anywhere.
"""

import fnmatch
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MISSING_TAG = "missing"
HOME = "/home/app"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Image:
    """What an image brings along: variables and the command for containers without one."""

    environment: Mapping[str, str] = field(default_factory=dict)
    entrypoint: Sequence[str] = ()
    working_dir: str = "/"


class Images:
    """The images that this node can pull."""

    def __init__(self, known: Mapping[str, Image], *, allowed: Sequence[str]) -> None:
        self._known = known
        self._allowed = allowed

    def pull(self, name: str) -> Image | None:
        """Return the image, or nothing if there is none of that name."""
        repository, tag = split(name)
        if tag == MISSING_TAG or not any(fnmatch.fnmatch(name, pattern) for pattern in self._allowed):
            return None
        image = self._known.get(name) or self._known.get(repository) or Image()
        return Image({**_base_environment(), **image.environment}, image.entrypoint, image.working_dir)


def split(name: str) -> tuple[str, str]:
    """Split an image's name into repository and tag."""
    name = name.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (name, "latest")


def _base_environment() -> dict[str, str]:
    # Nothing else of ours: a test must not pass because of a variable on this machine.
    return {
        "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
        "HOME": HOME,
        "LANG": os.environ.get("LANG", "C.UTF-8"),
    }
