"""How often an address that strangers name is dialled. Pure. Start at `DialBudget.begin`.

Whoever can make thousands of peers dial an address of his choice has a cannon, so each peer spends
at most `FAILED_DIALS` tokens on one, refilled within a minute. A dial that reaches the peer it was
meant for gives its token back: many honest peers behind one address cost nothing.
"""

from __future__ import annotations

from collections import Counter

from multiaddr import Multiaddr

from tokenplace import defaults
from tokenplace.peer.buckets import TokenBuckets
from tokenplace.peer.ranges import block_of, plain_ip


class DialBudget:
    """Failed dials by target, see `dial_target`. `now` is in seconds, on any clock."""

    def __init__(self) -> None:
        self._tokens = TokenBuckets(
            defaults.FAILED_DIALS, defaults.FAILED_DIALS / defaults.FAILED_DIALS_WINDOW_S
        )
        self._n_under_way: Counter[str] = Counter()

    def begin(self, target: str, now: float) -> bool:
        """May it be dialled now? If so, say with `end` how it went."""
        if not self._tokens.take(target, now):
            return False
        self._n_under_way[target] += 1
        return True

    def is_under_way(self, target: str) -> bool:
        """Is it being dialled? Then a token may come back soon."""
        return target in self._n_under_way

    def end(self, target: str, *, was_reached: bool, now: float) -> None:
        """A dial has ended. was_reached: the peer that was expected answered."""
        self._n_under_way[target] -= 1
        if not self._n_under_way[target]:
            del self._n_under_way[target]
        if was_reached:
            self._tokens.give_back(target, now)


def dial_target(addr: Multiaddr) -> str | None:
    """Whom a dial to `addr` hits: its IP's block, or a name; None for who is on our own network."""
    kind, value = str(addr).split("/")[1:3]
    if kind not in ("ip4", "ip6"):
        return value.lower()
    return block_of(value) if plain_ip(value).is_global else None
