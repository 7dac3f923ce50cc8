"""Addresses of pods: a documented map between what the API shows and what works.

Pods share the host's network, so that an ordinary user can run them and they reach servers
on 127.0.0.1. Yet each needs an address of its own, and EndpointSlices refuse loopback ones.
So a pod is *shown* with an address of 198.18.0.0/15, set aside for tests and routed
nowhere, and *reached* at the same address with the first number replaced: 198.18.5.7 is
127.18.5.7, which Linux answers without any set-up. Hosts files and `status.podIP` inside
containers say the second. The host itself is shown as 198.18.0.1 and reached at 127.0.0.1.

What the map cannot do: two pods that listen on *all* addresses at the same port clash, as
processes of one host do.
"""

import ipaddress
import secrets

HOST = "198.18.0.1"
LOOPBACK = "127.0.0.1"
SHOWN = ipaddress.IPv4Network("198.18.0.0/15")
BLOCK_PREFIX = 22  # a thousand pods a cluster, and 127 clusters on a machine


def reached(address: str) -> str:
    """Return where an address that the API shows is reached from this machine."""
    if address == HOST:
        return LOOPBACK
    if ipaddress.ip_address(address) in SHOWN:
        return f"127.{address.partition('.')[2]}"
    return address


class Addresses:
    """The block of addresses that one cluster gives to its pods."""

    def __init__(self) -> None:
        # At random, so that clusters side by side seldom share one; the first holds HOST.
        block = secrets.choice(list(SHOWN.subnets(new_prefix=BLOCK_PREFIX))[1:])
        self._free = [str(address) for address in block.hosts()]

    def take(self) -> str:
        """Take an address; the one given back longest ago comes first."""
        return self._free.pop(0)

    def give_back(self, address: str) -> None:
        """Return an address that its pod no longer uses."""
        self._free.append(address)
