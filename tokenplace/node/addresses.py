"""From how far away an address can be reached, and how peers are named to people. Pure.

Start at `reach_of`.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum
from typing import Final

ID_END_CHARS: Final = 10


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


def short(peer_id: str) -> str:
    """The end of a peer id, by which people can tell it from others: all begin alike."""
    return peer_id if len(peer_id) <= ID_END_CHARS else f"…{peer_id[-ID_END_CHARS:]}"
