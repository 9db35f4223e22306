"""Who may connect, and who makes room. Start at `Gate.enter`.

Pure: it counts, the listener (`upstream_tcp`) and the swarm (`upstream_swarm`) act. A connection is
counted from the moment it is accepted, before a byte of its handshake is read. Where it differs
from a plain limit: when all places are taken somebody goes, because a host that refuses every
newcomer is shut by whoever came first. Who goes is sought in the most crowded neighbourhood, so
that a flood washes out itself; and at the same address when that has all its places, because a
whole university may be behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from tokenplace import defaults
from tokenplace.peer.buckets import TokenBuckets
from tokenplace.peer.ranges import block_of, crowd_of, is_loopback


@dataclass(frozen=True, slots=True, eq=False)
class Seat:
    """The place of one inbound connection. `leave` is called when it has to go; must not wait."""

    block: str
    crowd: str
    is_local: bool
    entered_at: float
    leave: Callable[[], None]


class Gate:
    """Counts inbound connections, by address and in all. `now` is in seconds, on any clock.

    An address has so many places for handshakes, and as many for connections that are open.
    max_open: connections with their handshake done; those still in it have room of their own, so
    that silent ones push out nobody but each other.
    """

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._n_in_block: Counter[str] = Counter()
        self._greeting: dict[Seat, None] = {}
        self._open: dict[Seat, None] = {}
        self._recent = TokenBuckets(defaults.CONNECT_BURST, defaults.CONNECTS_PER_S)
        self._recent_local = TokenBuckets(
            defaults.LOOPBACK_CONNECT_BURST, defaults.LOOPBACK_CONNECTS_PER_S
        )

    @property
    def n_greeting(self) -> int:
        """Connections in their handshake."""
        return len(self._greeting)

    @property
    def n_open(self) -> int:
        """Connections with their handshake done."""
        return len(self._open)

    def enter(self, ip: str, now: float, leave: Callable[[], None]) -> Seat | None:
        """A seat for a connection that was just accepted; None: its address has enough of them."""
        block = block_of(ip)
        is_local = is_loopback(ip)
        at_once = _most_at(is_local)
        recent = self._recent_local if is_local else self._recent
        if not self._has_room(block, at_once) or not recent.take(block, now):
            return None
        seat = Seat(block, crowd_of(ip), is_local, now, leave)
        if self.n_greeting >= defaults.MAX_GREETING:
            silent_since = {greeting: greeting.entered_at for greeting in self._greeting}
            self._make_room(self._greeting, silent_since, seat)
        self._n_in_block[block] += 1
        self._greeting[seat] = None
        return seat

    def settle(self, seat: Seat, idle_since: Mapping[Seat, float], now: float) -> bool:
        """The handshake of `seat` is done; False: it cannot stay, nobody is idle.

        idle_since: the seats of settled connections that nobody uses, and since when.
        """
        self._greeting.pop(seat, None)
        neighbours = [held for held in self._open if held.block == seat.block]
        if len(neighbours) >= _most_at(seat.is_local):
            # Who has to go comes back: without a pause the places of one address would never rest.
            rested = {
                held: since
                for held, since in idle_since.items()
                if now - since >= defaults.IDLE_BEFORE_LEAVING_S
            }
            if not self._make_room(neighbours, rested, seat):
                return False
        if self.n_open >= self._max_open and not self._make_room(self._open, idle_since, seat):
            return False
        self._open[seat] = None
        return True

    def release(self, seat: Seat) -> None:
        """The connection of `seat` is closed."""
        self._greeting.pop(seat, None)
        self._open.pop(seat, None)
        self._n_in_block[seat.block] -= 1
        if not self._n_in_block[seat.block]:
            del self._n_in_block[seat.block]  # else every address ever seen would stay

    def _has_room(self, block: str, at_once: int) -> bool:
        """For one more handshake of one address? Who was sent away is counted until it is gone."""
        if self._n_in_block[block] < at_once:
            return True
        n_greeting = sum(seat.block == block for seat in self._greeting)
        return n_greeting < at_once and self._n_in_block[block] < 2 * at_once

    def _make_room(
        self, seats: Collection[Seat], idle_since: Mapping[Seat, float], newcomer: Seat
    ) -> bool:
        # Who was sent away before may not be gone yet.
        present = {seat: since for seat, since in idle_since.items() if seat in seats}
        victim = who_goes(seats, present, newcomer)
        if victim is None:
            return False
        self._greeting.pop(victim, None)
        self._open.pop(victim, None)
        victim.leave()
        return True


def _most_at(is_local: bool) -> int:
    """Open connections of one address."""
    return defaults.MAX_LOOPBACK_CONNECTIONS if is_local else defaults.MAX_CONNECTIONS_PER_IP


def who_goes(
    seats: Iterable[Seat], idle_since: Mapping[Seat, float], newcomer: Seat
) -> Seat | None:
    """Of the idle seats in the most crowded neighbourhood, the one idle for longest.

    The newcomer counts as one of its neighbourhood. None if nobody is idle.
    """
    crowds = Counter(seat.crowd for seat in seats)
    crowds[newcomer.crowd] += 1
    return min(idle_since, key=lambda seat: (-crowds[seat.crowd], idle_since[seat]), default=None)
