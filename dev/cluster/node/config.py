"""What the node process is told at its start, in one JSON file that only its owner can read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from dev.cluster.node.images import Image


@dataclass(frozen=True, slots=True)
class Config:
    """Where the control plane is, who we are and what our nodes have."""

    server: str
    ca_file: str
    run_dir: str
    port: int
    certificate: str
    key: str
    control_token: str  # for those who inject faults
    proxy_token: str  # of system:kube-proxy, who may read EndpointSlices as kubelets may not
    tokens: Mapping[str, str]  # node name -> bearer token
    gpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, Image] = field(default_factory=dict)
    allowed_images: Sequence[str] = ("*",)
    podman: bool = False  # run the images themselves

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file."""
        kept = json.loads(path.read_text())
        kept["images"] = {name: Image(**image) for name, image in kept["images"].items()}
        return cls(**kept)

    def write(self, path: Path) -> Path:
        """Write the file."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self), indent=1))
        return path
