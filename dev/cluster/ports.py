"""Free TCP ports on loopback, for servers that must be told theirs on the command line.

A port that was free a moment ago may be taken before the server binds it. Two things
keep that rare, and a retry of the whole start covers the rest: the ports lie outside
the range from which the kernel serves outgoing connections, and they are drawn at
random, so that two clusters starting side by side seldom draw the same ones.
"""

import random
import socket
from pathlib import Path

LOWEST = 10240
RENDEZVOUS = range(29400, 29600)  # torch's own default ports: a job's pods may bind them at any time
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Return `count` distinct ports that nothing listens on now."""
    candidates = range(LOWEST, _first_ephemeral_port())
    ports: list[int] = []
    for port in random.sample(candidates, len(candidates)):
        if len(ports) == count:
            return ports
        if port not in RENDEZVOUS and _is_free(port):
            ports.append(port)
    raise OSError(f"no {count} free ports on 127.0.0.1 in {candidates}")


def is_listened_on(port: int) -> bool:
    """Whether a server takes connections on this port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _first_ephemeral_port() -> int:
    try:
        return max(int(EPHEMERAL.read_text().split()[0]), LOWEST + 2048)
    except OSError:
        return 32768


def _is_free(port: int) -> bool:
    # The wildcard address: a listener on any address of the host would get in the way.
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
