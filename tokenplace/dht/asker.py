"""Asking one peer's directory, and taking in what it says. Start at `Asker`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from tokenplace import defaults
from tokenplace.dht.directory import OpensStreams, fetch
from tokenplace.dht.directory_wire import Entry, Op, Query
from tokenplace.dht.donors import DirectoryCache, DonorRecord
from tokenplace.dht.messages import PeerAddrs
from tokenplace.dht.turns import Turns
from tokenplace.errors import RemoteProtocolError, TokenplaceError
from tokenplace.peer.adverts import signer_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lane:
    """What may go on at the same time. With two, nobody waits behind background work."""

    fetches: trio.CapacityLimiter
    walks: trio.CapacityLimiter

    @classmethod
    def of(cls, n_fetches: int, n_walks: int) -> Lane:
        """A lane of so many questions and so many walks through the DHT."""
        return cls(trio.CapacityLimiter(n_fetches), trio.CapacityLimiter(n_walks))


class Asker:
    """Fills `cache` with what peers say. now: unix seconds.

    news: set, and replaced, whenever something was learned; read it anew before each wait.
    """

    def __init__(self, host: OpensStreams, cache: DirectoryCache, now: Callable[[], float]) -> None:
        self.news = trio.Event()
        self._host = host
        self._cache = cache
        self._now = now
        self._turns = Turns(defaults.ASKED_AT_ONCE)
        self._silent_at: dict[str, float] = {}

    def publish(self) -> None:
        """Wake everybody who waits for news."""
        news, self.news = self.news, trio.Event()
        news.set()

    def is_silent(self, peer_id: str) -> bool:
        """Did the peer fail to answer only now?"""
        silent_s = trio.current_time() - self._silent_at.get(peer_id, -math.inf)
        return silent_s < defaults.ASK_AGAIN_S

    async def ask_donor(self, peer_id: str, addrs: Sequence[str], lane: Lane) -> bool:
        """Fetch a donor's own statements; whether it lives and donates."""
        peer = PeerAddrs(peer_id, self._cache.usable_addrs(peer_id, addrs))
        learned = await self.ask(peer, Query(Op.PEER), lane)
        if learned is None:
            self._cache.mark_failed(peer_id, self._now())
        elif peer_id not in learned:
            # It donates nothing any more, or nothing that can be believed.
            self._cache.forget(peer_id)
        self.publish()
        return learned is not None and peer_id in learned

    async def ask(self, peer: PeerAddrs, query: Query, lane: Lane) -> set[str] | None:
        """Ask one directory: of whom it had valid statements; None if it did not answer."""
        asked_at = trio.current_time()
        try:
            async with self._turns.turn(peer.peer_id), lane.fetches:
                if self._silent_at.get(peer.peer_id, -math.inf) > asked_at:
                    return None  # somebody else learned it while this one waited
                answer = await fetch(self._host, peer.peer_id, query, addrs=peer.addrs)
        except TokenplaceError as error:
            log.debug("directory of %s: %s", peer.peer_id, error)
            self._note_silent(peer.peer_id)
            return None
        records = [self._take(entry, peer, answer.rtt_s) for entry in answer.entries]
        self.publish()
        return {record.peer_id for record in records if record is not None}

    def _take(self, entry: Entry, peer: PeerAddrs, rtt_s: float) -> DonorRecord | None:
        try:
            # Where the answering peer was found is no address of the others that it speaks of.
            addrs = peer.addrs if signer_of(entry.keys) == peer.peer_id else ()
            return self._cache.add(
                entry, answered_by=peer.peer_id, addrs=addrs, rtt_s=rtt_s, now=self._now()
            )
        except RemoteProtocolError as error:
            log.debug("statement from %s: %s", peer.peer_id, error)
            return None

    def _note_silent(self, peer_id: str) -> None:
        self._silent_at[peer_id] = trio.current_time()
        if len(self._silent_at) > defaults.DIRECTORY_MAX_DONORS:
            self._silent_at = {p: at for p, at in self._silent_at.items() if self.is_silent(p)}
        self.publish()
