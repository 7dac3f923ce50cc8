"""sha256 of files, read in pieces so that a file of any size takes little memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

PIECE = 4 << 20


def hash_file(path: Path) -> _Hash:
    """Return a running sha256 that has seen the file, to be continued or finished by the caller."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest


def sha256_of(path: Path) -> str:
    """Return the file's sha256 in hex."""
    return hash_file(path).hexdigest()
