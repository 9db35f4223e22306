"""The walk through the DHT towards a key. Start at `walk`.

No libp2p here: whom to ask is decided, `ask` is handed in. Differs from libp2p's lookups: one walk
instead of two, nobody waits for a silent peer while others are left to ask, and the caller learns
whether the walk came to its end.
"""

from __future__ import annotations

import bisect
import math
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


def _never(peer_id: str) -> bool:
    return False


async def walk(
    key: bytes,
    seeds: Iterable[PeerAddrs],
    ask: Ask,
    *,
    me: str,
    deadline_s: float,
    is_near: Callable[[str], bool] = _never,
    is_doubtful: Callable[[str], bool] = _never,
    is_satisfied: Callable[[], bool] = lambda: False,
) -> WalkResult:
    """Ask ever closer peers until the `K` closest known ones have answered, or time is up.

    me: this peer's own id, which is never asked. is_near: peers that are asked before others as
    close, because no connection has to be made. is_doubtful: peers that lately did not answer; they
    are asked when nobody else is left. is_satisfied: whether what was heard will do, once
    `ENOUGH_ANSWERS` of the closest have answered, or all that can be expected to.

    A peer that takes too long is passed over: others are asked in its place, and it is waited for
    only while there are not enough of them. Cancelling the walk is another way to stop it early.
    """
    state = _Walk(key, me, is_near, is_doubtful)
    state.learn(seeds)
    is_over = False
    with trio.move_on_after(deadline_s):
        async with trio.open_nursery() as nursery:
            while not (is_over := state.is_over) and not (state.may_do and is_satisfied()):
                for peer in state.next_peers(trio.current_time()):
                    nursery.start_soon(_ask_one, state, ask, peer)
                with trio.move_on_at(state.patience_ends_at):
                    await state.changed.wait()
                state.changed = trio.Event()
                state.pass_over(trio.current_time())
            nursery.cancel_scope.cancel()  # who is still in flight is not needed any more
    closest = tuple(peer for peer in state.by_distance() if peer.peer_id in state.answered)
    return WalkResult(closest[: defaults.K], bool(closest) and is_over)


async def _ask_one(state: _Walk, ask: Ask, peer: PeerAddrs) -> None:
    closer = await ask(peer)
    state.note(peer.peer_id, trio.current_time(), has_answered=closer is not None)
    if closer is not None:
        state.learn(closer)
    state.changed.set()


@dataclass(slots=True)
class _Walk:
    """What one walk knows. Every peer is known, then in flight, then answered or failed.

    in_flight: since when. slow: those in flight that are not waited for any more.
    """

    key: bytes
    me: str
    is_near: Callable[[str], bool]
    is_doubtful: Callable[[str], bool]
    known: dict[str, PeerAddrs] = field(default_factory=dict)
    in_flight: dict[str, float] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    changed: trio.Event = field(default_factory=trio.Event)
    _target: int = 0
    _slowest_answer_s: float = 0.0
    _distances: dict[str, int] = field(default_factory=dict)
    _order: list[str] = field(default_factory=list)
    _doubtful: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._target = position(self.key)

    def learn(self, peers: Iterable[PeerAddrs]) -> None:
        """Add peers; of one known already, the addresses heard first stay first."""
        for peer in peers:
            if peer.peer_id == self.me:
                continue
            old = self.known.get(peer.peer_id)
            if old is None:
                self._distances[peer.peer_id] = self._target ^ position(peer_id_bytes(peer.peer_id))
                bisect.insort(self._order, peer.peer_id, key=self._distances.__getitem__)
                if self.is_doubtful(peer.peer_id):
                    self._doubtful.add(peer.peer_id)
            addrs = dict.fromkeys((*(old.addrs if old else ()), *peer.addrs))
            self.known[peer.peer_id] = PeerAddrs(
                peer.peer_id, tuple(addrs)[: defaults.MAX_PEER_ADDRS]
            )

    def note(self, peer_id: str, now: float, *, has_answered: bool) -> None:
        """One query has ended."""
        asked_at = self.in_flight.pop(peer_id)
        self.slow.discard(peer_id)
        self._doubtful.discard(peer_id)
        if has_answered:
            self.answered.add(peer_id)
            self._slowest_answer_s = max(self._slowest_answer_s, now - asked_at)
        else:
            self.failed.add(peer_id)

    def by_distance(self) -> list[PeerAddrs]:
        """All known peers, the closest first."""
        return [self.known[peer_id] for peer_id in self._order]

    def _frontier(self) -> list[str]:
        """The `K` closest peers that can be expected to answer, or have."""
        gone = self.failed | self.slow | self._doubtful
        return [peer_id for peer_id in self._order if peer_id not in gone][: defaults.K]

    @property
    def is_over(self) -> bool:
        """Have the `K` closest answered, or everybody who ever will?"""
        frontier = self._frontier()
        if not self.answered.issuperset(frontier):
            return False
        return len(frontier) == defaults.K or not (self.in_flight or self._doubtful)

    @property
    def may_do(self) -> bool:
        """Have as many of the closest answered as a satisfied caller needs?"""
        frontier = self._frontier()
        n_answered = len(self.answered.intersection(frontier))
        return 0 < n_answered >= min(defaults.ENOUGH_ANSWERS, len(frontier))

    def next_peers(self, now: float) -> list[PeerAddrs]:
        """Peers to ask now, counted as in flight from here on."""
        n_free = min(
            defaults.ALPHA - len(self.in_flight.keys() - self.slow),
            defaults.MAX_WALK_QUERIES - len(self.in_flight),
        )
        if n_free <= 0:
            return []
        frontier = self._frontier()
        waiting = [peer_id for peer_id in frontier if peer_id not in self.answered]
        waiting.sort(key=lambda peer_id: not self.is_near(peer_id))  # stable: else by distance
        if len(frontier) < defaults.K:
            waiting += [peer_id for peer_id in self._order if peer_id in self._doubtful]
        chosen = [peer_id for peer_id in waiting if peer_id not in self.in_flight][:n_free]
        self.in_flight.update((peer_id, now) for peer_id in chosen)
        return [self.known[peer_id] for peer_id in chosen]

    @property
    def _patience_s(self) -> float:
        """Grows with what is heard: where everybody is slow, nobody is passed over for it."""
        return max(defaults.PATIENCE_S, 2 * self._slowest_answer_s)

    @property
    def patience_ends_at(self) -> float:
        """When the next peer is passed over, if nothing happens before."""
        waited_for = (at for one, at in self.in_flight.items() if one not in self.slow)
        return min(waited_for, default=math.inf) + self._patience_s

    def pass_over(self, now: float) -> None:
        """Wait no more for those who were asked too long ago."""
        patience_s = self._patience_s
        self.slow.update(one for one, at in self.in_flight.items() if at + patience_s <= now)
