"""Which addresses a user's URL may lead to: public ones only.

A trainer pod stands inside the cluster's network. A URL that a user writes must not reach what only the pod can: its
own services, the node, the cloud's metadata. The name is resolved once, every address is checked, and the connection
goes to an address that was checked: a name that answers differently the second time gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Public addresses that clouds answer on from the inside: Azure's agent and metadata.
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class RefusedAddressError(Exception):
    """A name leads to an address that must not be reached; the text says what kind it is."""


def public_addresses(host: str, port: int) -> list[str]:
    """Resolve a name, once. Raises RefusedAddressError if an address of it is not public, OSError if it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    for text in addresses:
        if kind := kind_of_private(ipaddress.ip_address(text)):
            raise RefusedAddressError(kind)
    return addresses


def kind_of_private(address: Address) -> str | None:
    """Return what makes an address unreachable for users' URLs; None for a public one."""
    if inner := _inside(address):
        return kind_of_private(inner)
    if address in _METADATA:
        return "metadata"
    kinds = {
        "loopback": address.is_loopback,
        "link-local": address.is_link_local,
        "multicast": address.is_multicast,
        "private": not address.is_global,
    }
    return next((kind for kind, holds in kinds.items() if holds), None)


def _inside(address: Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address stands for: mapped, 6to4, Teredo, NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)
