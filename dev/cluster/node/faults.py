"""What tests can make a node do wrong; read by those whom it concerns, set through the server."""

from dataclasses import dataclass


@dataclass(slots=True)
class Faults:
    """The faults of one node."""

    start_delay: float = 0.0  # seconds before a container's process is made, as with a slow disk
