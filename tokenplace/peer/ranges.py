"""Whom an IP address is counted as. Pure. Start at `block_of` and `crowd_of`.

Peer ids are free and so is most of an IPv6 network, so limits count what costs something: one
customer's addresses, or a whole neighbourhood of them. An IPv4 address that arrives inside an IPv6
one counts as IPv4.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final

_BLOCK_PREFIX: Final = {4: 32, 6: 56}  # what one customer has, go-libp2p's figures
_CROWD_PREFIX: Final = {4: 16, 6: 32}  # what one provider has
LOOPBACK: Final = "loopback"


def plain_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address of a socket, without its scope, IPv4 in IPv6 unwrapped."""
    ip = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


@lru_cache(maxsize=4096)
def block_of(ip: str) -> str:
    """The smallest range that is counted as one: an IPv4 address, an IPv6 /56."""
    return _range_of(ip, _BLOCK_PREFIX)


@lru_cache(maxsize=4096)
def crowd_of(ip: str) -> str:
    """The neighbourhood that has to make room: an IPv4 /16, an IPv6 /32, all of this machine."""
    return LOOPBACK if is_loopback(ip) else _range_of(ip, _CROWD_PREFIX)


@lru_cache(maxsize=4096)
def is_loopback(ip: str) -> bool:
    """Is it an address of this machine's own programs?"""
    return plain_ip(ip).is_loopback


def _range_of(ip: str, prefixes: dict[int, int]) -> str:
    address = plain_ip(ip)
    return str(ipaddress.ip_network((int(address), prefixes[address.version]), strict=False))
