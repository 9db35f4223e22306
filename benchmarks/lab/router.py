"""What links do to packets. Pure: `now` and every time are seconds of one steady clock. Start at
`Rule`, then `Link.arrivals`.

Words and effects are those of Linux' netem, but for one: a reordered packet is not sent ahead of
its delay, it is held back, so that links without delay reorder too.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Final

NETWORK: Final = (10, 77, 0)  # private: no packet of it would be routed anywhere
MAX_HOSTS: Final = 64  # a row of links to each of them; drills have six
HELD_BACK_S: Final = 0.02  # of a reordered packet: at 1 Mbit/s one or two overtake it
MAX_QUEUE_S: Final = 0.5  # a throttled link's queue; home routers have as much
MAX_IN_FLIGHT: Final = 20_000  # packets, over all links: 30 MB; 20 Mbit/s for 10 s

_IPV4: Final = 4
_DESTINATION: Final = slice(16, 20)  # in the header: RFC 791, section 3.1


@dataclass(frozen=True, slots=True)
class Rule:
    """What a link does in one direction.

    delay_s, jitter_s: a packet takes `delay_s`, up to `jitter_s` more or less. loss, duplicate,
    reorder: shares of the packets, 0 to 1. bits_per_s: 0 means no limit; what would wait longer
    than `MAX_QUEUE_S` is lost. is_up: whether anything comes through at all.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    bits_per_s: float = 0.0
    is_up: bool = True


class Link:
    """One direction between two hosts."""

    def __init__(self, dice: Random) -> None:
        self.rule = Rule()
        self._dice = dice
        self._free_at = -math.inf  # when all that was sent so far has left

    def arrivals(self, n_bytes: int, now: float) -> list[float]:
        """When a packet sent now arrives: once, twice, or never."""
        rule = self.rule
        if not rule.is_up or self._draws(rule.loss):
            return []
        left_at = now
        if rule.bits_per_s:
            begins_at = max(now, self._free_at)
            if begins_at - now > MAX_QUEUE_S:
                return []
            left_at = self._free_at = begins_at + 8 * n_bytes / rule.bits_per_s
        n_copies = 2 if self._draws(rule.duplicate) else 1
        return [left_at + self._delay_s(rule) for _ in range(n_copies)]

    def _delay_s(self, rule: Rule) -> float:
        delay_s = rule.delay_s
        if rule.jitter_s:
            delay_s = max(0.0, delay_s + self._dice.uniform(-rule.jitter_s, rule.jitter_s))
        if self._draws(rule.reorder):
            delay_s += HELD_BACK_S
        return delay_s

    def _draws(self, share: float) -> bool:
        return share > 0 and self._dice.random() < share


@dataclass(slots=True)
class Traffic:
    """What has become of all packets so far. n_cut: at links that were not up; n_lost: elsewhere.
    n_doubled: of those carried. n_bytes: of packets carried."""

    n_carried: int = 0
    n_bytes: int = 0
    n_doubled: int = 0
    n_lost: int = 0
    n_cut: int = 0


class Router:
    """All links between `n_hosts` hosts, and what is under way on them.

    Each link has dice of its own: what one decides does not depend on what others carry.
    """

    def __init__(self, n_hosts: int, seed: int) -> None:
        self.traffic = Traffic()
        self._links = {
            (source, target): Link(Random(f"{seed}/{source}/{target}"))
            for source in range(n_hosts)
            for target in range(n_hosts)
            if source != target
        }
        self._under_way: list[tuple[float, int, int, bytes]] = []  # a heap
        self._numbers = count()  # of equal times the first sent arrives first

    def set_rule(self, source: int, target: int, rule: Rule) -> None:
        """From now on; what is under way is not called back. Raises `KeyError` for no link."""
        self._links[source, target].rule = rule

    def take(self, source: int, packet: bytes, now: float) -> None:
        """A host has sent this. What is not for another host is dropped."""
        target = destination(packet)
        link = None if target is None else self._links.get((source, target))
        if link is None or target is None:
            return
        arrivals = link.arrivals(len(packet), now)
        if not arrivals or len(self._under_way) >= MAX_IN_FLIGHT:
            self.traffic.n_lost += link.rule.is_up
            self.traffic.n_cut += not link.rule.is_up
            return
        self.traffic.n_carried += 1
        self.traffic.n_bytes += len(packet)
        self.traffic.n_doubled += len(arrivals) - 1
        for at in arrivals:
            heapq.heappush(self._under_way, (at, next(self._numbers), target, packet))

    def next_at(self) -> float:
        """When the next packet arrives; infinite if none is under way."""
        return self._under_way[0][0] if self._under_way else math.inf

    def arrived(self, now: float) -> Iterator[tuple[int, bytes]]:
        """Each packet that has arrived by now, and at which host; once."""
        while self._under_way and self._under_way[0][0] <= now:
            _, _, target, packet = heapq.heappop(self._under_way)
            yield target, packet


def address(host: int) -> str:
    """The host's IPv4 address."""
    return ".".join(map(str, (*NETWORK, host + 1)))


def destination(packet: bytes) -> int | None:
    """The host that an IP packet is for; None if it is for none."""
    if len(packet) < _DESTINATION.stop or packet[0] >> 4 != _IPV4:
        return None
    *network, number = packet[_DESTINATION]
    return number - 1 if tuple(network) == NETWORK and number > 0 else None
