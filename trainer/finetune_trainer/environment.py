"""Where a stage reads and writes on its own machine: pod paths by default, other folders by variables.

Only this module reads the `FINETUNE_*` variables, so that a test or `finetune run` moves everything with five of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from finetune_contract import paths


@dataclass(frozen=True, slots=True)
class Environment:
    """Folders and files of this machine that a stage uses."""

    config: Path
    """The run configuration."""
    work: Path
    """Scratch space that ends with the pod."""
    cache: Path
    """Models by content, shared by jobs where the profile mounts a volume there."""
    claims: Path
    """One folder a mounted PersistentVolumeClaim: pvc://claim/path lies at claims/claim/path."""
    termination_log: Path
    """The kubelet reads the container's last word here."""

    @classmethod
    def from_env(cls) -> Self:
        """Return what the variables say, and the pod's paths where they say nothing."""
        return cls(
            config=_path(paths.ENV_CONFIG, paths.POD_CONFIG),
            work=_path(paths.ENV_WORK, paths.POD_WORK),
            cache=_path(paths.ENV_CACHE, paths.POD_CACHE),
            claims=claims_folder(),
            termination_log=_path(paths.ENV_TERMINATION_LOG, paths.POD_TERMINATION_LOG),
        )


def claims_folder() -> Path:
    """Return the folder under which the claims are mounted; storage needs it without the rest."""
    return _path(paths.ENV_CLAIMS, paths.POD_CLAIMS)


def _path(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default)
