"""Which addresses of strangers may be dialled. Pure. Start at `usable_addrs`.

Differs from what a person writes into `bootstrap_nodes.txt`: no names to resolve and nothing inside
private networks, or anybody could have this peer knock on doors behind its own firewall.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from tokenplace import defaults


def usable_addrs(
    addrs: Iterable[str],
    peer_id: str,
    *,
    allow_private: bool,
    max_addrs: int = defaults.MAX_ADDRS,
) -> tuple[str, ...]:
    """The first `max_addrs` addresses that may be dialled, as `/ip4|ip6/…/tcp/…`, each once.

    Public unicast TCP only; with `allow_private` private, loopback and link-local ones too. An
    address that ends in another peer's id, and whatever cannot be read, is left out.
    """
    usable: dict[str, None] = {}
    for addr in addrs:
        if len(usable) == max_addrs:
            break
        plain = _plain_tcp(addr, peer_id, allow_private)
        if plain is not None:
            usable[plain] = None
    return tuple(usable)


@lru_cache(defaults.MAX_PARSED)  # the same few peers are named in every answer
def _plain_tcp(addr: str, peer_id: str, allow_private: bool) -> str | None:
    """`addr` without its peer id, or None if it may not be dialled."""
    parts = addr.split("/")
    if len(parts) == 7 and parts[5] == "p2p" and parts[6] == peer_id:
        parts = parts[:5]
    if len(parts) != 5 or parts[0] or parts[3] != "tcp":
        return None
    _, version, text, _, port_text = parts
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    if version != f"ip{ip.version}" or "%" in text or not _may_dial(ip, allow_private):
        return None
    # `isdecimal` alone takes digits of other scripts too.
    if not (port_text.isascii() and port_text.isdecimal() and 0 < int(port_text[:6]) < 1 << 16):
        return None
    return f"/{version}/{ip}/tcp/{int(port_text)}"


def _may_dial(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, allow_private: bool) -> bool:
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return False  # an IPv4 address in disguise
    if ip.is_unspecified or ip.is_multicast or ip == ipaddress.IPv4Address("255.255.255.255"):
        return False
    return allow_private or ip.is_global
