"""The walk through the DHT towards a key. Start at `walk`.

No libp2p here: whom to ask is decided, `ask` is handed in. Differs from libp2p's lookups: one walk
instead of two, a silent peer holds up nobody but its own place among `ALPHA` queries in flight, and
the caller learns whether the walk came to its end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import trio

from tokenplace import defaults
from tokenplace.dht.messages import PeerAddrs, peer_id_bytes
from tokenplace.dht.table import position

Ask = Callable[[PeerAddrs], Awaitable[list[PeerAddrs] | None]]
"""Queries one peer: the peers it knows closer to the key, or None when it did not answer."""


@dataclass(frozen=True, slots=True)
class WalkResult:
    """closest: the `K` closest peers to the key that answered, the closest first.

    complete: whether the walk ended by itself, nobody closer being left to ask, and somebody did
    answer.
    """

    closest: tuple[PeerAddrs, ...]
    complete: bool


async def walk(
    key: bytes, seeds: Iterable[PeerAddrs], ask: Ask, *, me: str, deadline_s: float
) -> WalkResult:
    """Ask ever closer peers until the `K` closest known ones have answered, or time is up.

    me: this peer's own id, which is never asked. Cancelling the walk is the way to stop it early.
    """
    state = _Walk(key, me)
    state.learn(seeds)
    with trio.move_on_after(deadline_s) as deadline:
        async with trio.open_nursery() as nursery:
            while not state.is_over:
                for peer in state.next_peers():
                    nursery.start_soon(_ask_one, state, ask, peer)
                await state.changed.wait()
                state.changed = trio.Event()
            nursery.cancel_scope.cancel()  # who is still in flight is further away than all these
    closest = tuple(peer for peer in state.by_distance() if peer.peer_id in state.answered)
    return WalkResult(closest[: defaults.K], bool(closest) and not deadline.cancelled_caught)


async def _ask_one(state: _Walk, ask: Ask, peer: PeerAddrs) -> None:
    closer = await ask(peer)
    state.in_flight.discard(peer.peer_id)
    if closer is None:
        state.failed.add(peer.peer_id)
    else:
        state.answered.add(peer.peer_id)
        state.learn(closer)
    state.changed.set()


@dataclass(slots=True)
class _Walk:
    """What one walk knows. Every peer is known, then in flight, then answered or failed."""

    key: bytes
    me: str
    known: dict[str, PeerAddrs] = field(default_factory=dict)
    in_flight: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    changed: trio.Event = field(default_factory=trio.Event)
    _target: int = 0
    _distances: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._target = position(self.key)

    def learn(self, peers: Iterable[PeerAddrs]) -> None:
        """Add peers; of one known already, the addresses heard first stay first."""
        for peer in peers:
            if peer.peer_id == self.me:
                continue
            old = self.known.get(peer.peer_id)
            addrs = dict.fromkeys((*(old.addrs if old else ()), *peer.addrs))
            self.known[peer.peer_id] = PeerAddrs(
                peer.peer_id, tuple(addrs)[: defaults.MAX_PEER_ADDRS]
            )
            self._distances[peer.peer_id] = self._target ^ position(peer_id_bytes(peer.peer_id))

    def by_distance(self) -> list[PeerAddrs]:
        """All known peers, the closest first."""
        return sorted(self.known.values(), key=lambda peer: self._distances[peer.peer_id])

    def _frontier(self) -> list[PeerAddrs]:
        """The `K` closest peers that have not failed: once all of them answered, it is over."""
        return [peer for peer in self.by_distance() if peer.peer_id not in self.failed][
            : defaults.K
        ]

    @property
    def is_over(self) -> bool:
        return all(peer.peer_id in self.answered for peer in self._frontier())

    def next_peers(self) -> list[PeerAddrs]:
        """Peers to ask now, counted as in flight from here on."""
        waiting = [
            peer
            for peer in self._frontier()
            if peer.peer_id not in self.answered and peer.peer_id not in self.in_flight
        ]
        chosen = waiting[: max(0, defaults.ALPHA - len(self.in_flight))]
        self.in_flight.update(peer.peer_id for peer in chosen)
        return chosen
