"""A finder among fake hosts, for tests in virtual time. Start at `Network`."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import trio

from tests.dht.donating import NETWORK, NOW, TINY_MODEL, Donor, identity_of
from tests.peer.memory import stream_pair
from tokenplace.dht.directory import Directory
from tokenplace.dht.donors import DirectoryCache
from tokenplace.dht.finder import Finder, FindResult, open_finder
from tokenplace.dht.kad import ProviderSearch
from tokenplace.dht.messages import PeerAddrs
from tokenplace.errors import ConnectFailed
from tokenplace.models.names import NamedModel
from tokenplace.peer.host import ConnectionInfo
from tokenplace.peer.streams import STREAM_GONE, PeerStream, StreamHandler


def now() -> float:
    return NOW + trio.current_time()


@dataclass(eq=False)
class Network:
    """Everybody else: a host, a DHT and a joiner in one, each as far as the finder needs it."""

    donors: dict[str, Donor] = field(default_factory=dict)
    bootstrap: list[str] = field(default_factory=list)
    in_dht: list[str] = field(default_factory=list)
    dead: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    asked: list[tuple[float, str]] = field(default_factory=list)
    is_cut_short: bool = False
    at_the_end: list[str] = field(default_factory=list)
    told_by: dict[str, list[str]] = field(default_factory=dict)
    connected: list[ConnectionInfo] = field(default_factory=list)
    n_open: Counter[str] = field(default_factory=Counter)
    most_open: int = 0
    most_open_to_one: int = 0
    nursery: trio.Nursery | None = None
    provided: Callable[[str], None] = lambda _: None

    def add(self, name: str) -> str:
        donor = Donor(identity_of(name))
        self.donors[donor.identity.peer_id] = donor
        return donor.identity.peer_id

    def n_asked_since(self, time: float) -> int:
        return sum(at >= time for at, _ in self.asked)

    # as a host
    def connections(self) -> list[ConnectionInfo]:
        return self.connected

    def connect(self, peer_id: str, direction: str = "out", silent_s: float = 0.0) -> None:
        addr = "/ip4/127.0.0.1/tcp/4010"
        self.connected.append(ConnectionInfo(peer_id, addr, direction, 0.0, 0, silent_s))

    async def open_stream(
        self, peer_id: str, protocol: str, addrs: Sequence[str] = ()
    ) -> PeerStream:
        self.asked.append((trio.current_time(), peer_id))
        await trio.sleep(0.01)
        if peer_id in self.dead:
            raise ConnectFailed
        mine, theirs = stream_pair((peer_id, "asker"))
        assert self.nursery is not None
        self.nursery.start_soon(self._answer, peer_id, theirs)
        return mine

    async def _answer(self, peer_id: str, stream: PeerStream) -> None:
        self.n_open[peer_id] += 1
        self.most_open = max(self.most_open, self.n_open.total())
        self.most_open_to_one = max(self.most_open_to_one, self.n_open[peer_id])
        if peer_id in self.silent:
            with suppress(*STREAM_GONE):
                while await stream.receive_some(1024):
                    pass  # until the asker gives up
        else:
            donor = self.donors[peer_id]
            donor.now = now()
            cache = DirectoryCache(NETWORK, allow_private=False)
            for other in self.told_by.get(peer_id, ()):
                self.donors[other].now = now()
                own = self.donors[other].announcer().own()
                assert own is not None
                cache.add(own.entry, answered_by=other, now=now())
            await Directory(cache, peer_id, donor.announcer().own, now).handle(stream)
        self.n_open[peer_id] -= 1

    def set_stream_handler(self, protocol: str, handler: StreamHandler, **limits: int) -> None:
        """Nobody here tells news."""

    # as a DHT
    def n_peers(self) -> int:
        return 1

    def servers(self) -> list[PeerAddrs]:
        return []

    def on_provided(self, told: Callable[[str], None]) -> None:
        self.provided = told

    async def find_providers(
        self, key: bytes, *, enough: int, soft_s: float, is_thorough: bool = False
    ) -> ProviderSearch:
        await trio.sleep(0.1)
        is_whole = is_thorough or not self.is_cut_short
        named = [*self.in_dht, *(self.at_the_end if is_whole else ())]
        providers = tuple(PeerAddrs(peer, tuple(self.donors[peer].addrs)) for peer in named)
        return ProviderSearch(providers[:enough], complete=is_whole)

    # as a joiner
    @property
    def peers(self) -> tuple[PeerAddrs, ...]:
        return tuple(PeerAddrs(peer, ()) for peer in self.bootstrap)

    @property
    def is_alone(self) -> bool:
        return False

    async def wait_joined(self) -> None:
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_finder_in(network: Network) -> AsyncIterator[Finder]:
    cache = DirectoryCache(NETWORK, allow_private=False)
    everybody: Any = network
    async with trio.open_nursery() as nursery:
        network.nursery = nursery
        async with open_finder(
            everybody, everybody, everybody, cache, network=NETWORK, now=now
        ) as finder:
            yield finder
        nursery.cancel_scope.cancel()


async def find(finder: Finder) -> FindResult:
    return await finder.find([NamedModel(TINY_MODEL.name, TINY_MODEL.artifact)])
