"""Where a stage reads and writes on its own machine: pod paths by default, other folders by variables.

Only this module reads the `FINETUNE_*` variables, so that a test or `finetune run` moves everything with five of them.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

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


def deepspeed_config() -> str | None:
    """Return the user's DeepSpeed configuration as it was written, if there is one."""
    return os.environ.get(paths.ENV_DEEPSPEED_CONFIG)


def is_rank() -> bool:
    """Whether this process was started as one of several, by `launch`."""
    return "LOCAL_RANK" in os.environ


def end_rank(code: int) -> NoReturn:
    """End this process, all said and stored: torch's groups would wait for ranks that never answer, for hours."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def collective_timeout() -> float:
    """Return the seconds that processes of one run wait for each other before they call it hung."""
    return float(os.environ.get(paths.ENV_COLLECTIVE_TIMEOUT) or 600)


def _path(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default)
