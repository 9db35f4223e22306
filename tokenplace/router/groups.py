"""Which donors may be one hoster's: what somebody with a thousand identities has to pay for is
addresses. Start at `groups_of`. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from tokenplace.peer.ranges import crowd_of, is_loopback, plain_ip

UNKNOWN: Final = "?"  # where nobody can be dialled; all such are one group


def groups_of(addrs: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The group of each donor, by its addresses: the network that it shares with most others.

    Whoever has many donors in one network can have them name addresses elsewhere too, but they have
    to name the one that works.
    """
    crowds = {donor: {_crowd(addr) for addr in each} for donor, each in addrs.items()}
    n_donors = Counter(crowd for each in crowds.values() for crowd in each)
    return {
        donor: max(each, key=lambda crowd: (n_donors[crowd], crowd), default=UNKNOWN)
        for donor, each in crowds.items()
    }


def _crowd(addr: str) -> str:
    """An IPv4 /16 or IPv6 /32. In a private network each machine counts, and on this machine each
    program: there identities cost no less.
    """
    _, _, ip, _, port = addr.split("/")[:5]
    if is_loopback(ip):
        return f"{ip}:{port}"
    return ip if plain_ip(ip).is_private else crowd_of(ip)
