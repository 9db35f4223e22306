"""From how far away an address can be reached. Pure. Start at `reach_of`."""

from __future__ import annotations

import ipaddress
from enum import IntEnum


class Reach(IntEnum):
    """Where an address means the same host; the farther, the lower."""

    INTERNET = 0
    LOCAL_NETWORK = 1
    THIS_MACHINE = 2


def reach_of(addr: str) -> Reach:
    """The reach of a multiaddr; a DNS name is taken for a public one."""
    try:
        ip = ipaddress.ip_address(addr.split("/")[2])
    except (ValueError, IndexError):
        return Reach.INTERNET
    if ip.is_loopback:
        return Reach.THIS_MACHINE
    return Reach.INTERNET if ip.is_global else Reach.LOCAL_NETWORK
