"""Who leads: what one replica does next, by the Lease that it sees and its own monotonic clock.

As client-go has it, no two clocks are compared: a Lease has run out when nobody has renewed it for its duration since
*this* replica first saw it as it is. A leader stops by itself at RENEW_DEADLINE, which is before anyone may take it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

LEASE_SECONDS = 10
"""A lost leader's successor acts after this and a poll: within 15 s with its first request."""
RENEW_DEADLINE = 6.0
"""Seconds after its last renewal from which a leader writes nothing any more."""
RENEW_EVERY = 2.0
POLL_EVERY = 1.0
"""Seconds between two looks of a follower: also how long a Lease that was given back lies free."""

Move = Literal["take", "renew", "wait"]


@dataclass(frozen=True, slots=True)
class Lease:
    """The fields of a coordination.k8s.io Lease that matter."""

    holder: str = ""
    """Nobody's when empty."""
    seconds: float = LEASE_SECONDS
    """How long the holder may be silent."""
    transitions: int = 0
    version: str = ""
    """resourceVersion: empty where there is no Lease yet."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A Lease as it was last read, and when it first looked like that."""

    lease: Lease
    since: float
    """Monotonic seconds."""


def sighted(last: Sighting | None, lease: Lease, now: float) -> Sighting:
    """Return what is known after one more look: a renewal is a new version, and starts the time anew."""
    if last is not None and last.lease.version == lease.version:
        return last
    return Sighting(lease, now)


def next_move(seen: Sighting, me: str, now: float) -> Move:
    """Return what to do about a Lease."""
    if seen.lease.holder == me:
        return "renew"
    if not seen.lease.holder or now >= seen.since + seen.lease.seconds:
        return "take"
    return "wait"


def held_by(me: str, lease: Lease) -> Lease:
    """Return the Lease as it is to be once this replica has it."""
    moved = lease.holder != me
    return replace(lease, holder=me, seconds=LEASE_SECONDS, transitions=lease.transitions + moved)
