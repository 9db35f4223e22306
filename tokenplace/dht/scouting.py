"""Whom a search asks, and how far. Start at `Scout.walk`; `finder` and `explorer` decide what for.

Records of the DHT only name peers, and anybody may put some there: whom they name is asked itself,
those of many networks first, so that the squatters of one do not stand in the way of all others.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable

import trio

from tokenplace import defaults
from tokenplace.dht.asker import Asker, Lane
from tokenplace.dht.bootstrap import Joiner
from tokenplace.dht.donors import DirectoryCache, DonorRecord
from tokenplace.dht.kad import Kad
from tokenplace.dht.messages import PeerAddrs
from tokenplace.peer.host import PeerHost
from tokenplace.peer.ranges import crowd_of


class Scout:
    """Ways from a question to peers that may know; what they say goes into `cache`."""

    def __init__(
        self,
        host: PeerHost,
        kad: Kad,
        joiner: Joiner,
        cache: DirectoryCache,
        network: str,
        now: Callable[[], float],
    ) -> None:
        """network: name of the network. now: unix seconds."""
        self.host = host
        self.kad = kad
        self.joiner = joiner
        self.cache = cache
        self.network = network
        self.now = now
        self.asker = Asker(host, cache, now)

    def peers_to_ask(self) -> list[PeerAddrs]:
        """Peers whose directories are near: the bootstrap peers, and who is connected and serves.

        Who called and is no server of the DHT only asks, and has no directory.
        """
        servers = {peer.peer_id for peer in self.kad.servers()}
        connected = [
            PeerAddrs(info.peer_id, ())
            for info in self.host.connections()
            if info.direction == "out" or info.peer_id in servers
        ]
        random.shuffle(connected)
        peers = {peer.peer_id: peer for peer in (*connected, *self.joiner.peers)}
        speaking = [peer for peer in peers.values() if not self.asker.is_silent(peer.peer_id)]
        return (speaking or list(peers.values()))[-defaults.MAX_DIRECTORIES_ASKED :]

    def is_worth_asking(self, peer_id: str) -> bool:
        """False if it was heard only now, or just did not answer."""
        record = self.cache.get(peer_id, self.now())
        is_fresh = record is not None and record.load(self.now()) is not None
        return not is_fresh and not self.asker.is_silent(peer_id)

    async def walk(self, keys: Iterable[bytes], lane: Lane, is_enough: Callable[[], bool]) -> bool:
        """Ask the DHT for `keys`, and the donors it names; whether every walk ended by itself.

        A walk that was cut short, because it met providers, goes on to its end if what they say is
        not enough.
        """
        ended: list[bool] = []
        met: set[str] = set()
        places = trio.Semaphore(defaults.FOREGROUND_FETCHES)

        async def ask(peer: PeerAddrs) -> None:
            try:
                await self.asker.ask_donor(peer.peer_id, peer.addrs, lane)
            finally:
                places.release()

        async def ask_all(peers: Iterable[PeerAddrs]) -> None:
            for peer in spread(peers):
                if peer.peer_id not in met and self.is_worth_asking(peer.peer_id):
                    met.add(peer.peer_id)
                    await places.acquire()
                    nursery.start_soon(ask, peer)

        async def walk_one(key: bytes) -> None:
            async with lane.walks:
                # As many as one server may name: those may all be squatters of one key.
                found = await self.kad.find_providers(
                    key, enough=defaults.MAX_PROVIDERS_PER_KEY, soft_s=defaults.WALK_SOFT_S
                )
            nursery.start_soon(ask_all, found.providers)
            if not found.complete and not await self._becomes(is_enough):
                async with lane.walks:
                    found = await self.kad.find_providers(
                        key,
                        enough=defaults.MAX_PROVIDERS_MET,
                        soft_s=defaults.FIND_TIMEOUT_S,
                        is_thorough=True,
                    )
                nursery.start_soon(ask_all, found.providers)
            ended.append(found.complete)

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(walk_one, key)
        return all(ended)

    async def _becomes(self, is_enough: Callable[[], bool]) -> bool:
        """Whether it is enough, or soon becomes so."""
        with trio.move_on_after(defaults.PROBE_S):
            while not is_enough():
                await self.asker.news.wait()
        return is_enough()


def spread(peers: Iterable[PeerAddrs]) -> list[PeerAddrs]:
    """`peers`, one of each network first, then the second of each, and so on. Pure.

    A peer's network is that of its first address, "/ip4|ip6/…/tcp/…".
    """
    n_before: Counter[str] = Counter()
    turns: list[tuple[int, PeerAddrs]] = []
    for peer in peers:
        network = crowd_of(peer.addrs[0].split("/")[2]) if peer.addrs else ""
        turns.append((n_before[network], peer))
        n_before[network] += 1
    return [peer for _, peer in sorted(turns, key=lambda turn: turn[0])]


def distance(record: DonorRecord) -> float:
    """For sorting: round trip in seconds, never measured last."""
    return math.inf if record.rtt_s is None else record.rtt_s
