"""Networks of peers in one process, in our DHT or in libp2p's own. Start at `Lab`.

Every peer is a real host on loopback and knows only the first. Both DHTs run on our hosts: libp2p's
own would not live through the run.
"""

from __future__ import annotations

import gc
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from tokenplace import defaults
from tokenplace.dht.kad import Kad, open_kad
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.streams import PeerStream

NETWORK: Final = "benchmark"
LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"
STOCK_ADDRS_TTL_S: Final = 3600


class Dht(Protocol):
    """One peer's part in a DHT."""

    protocol: str

    async def join(self, first: PeerHost) -> None:
        """Get to know the network through one peer."""

    async def provide(self, key: bytes) -> None:
        """Announce this peer under `key`."""

    async def find(self, key: bytes) -> set[str]:
        """The ids of the providers of `key`."""


@dataclass
class OurDht:
    """tokenplace's."""

    kad: Kad
    protocol: str = defaults.DHT_PROTOCOL.format(network=NETWORK)

    async def join(self, first: PeerHost) -> None:
        await self.kad.join([(first.peer_id, first.addrs())])

    async def provide(self, key: bytes) -> None:
        await self.kad.provide(key)

    async def find(self, key: bytes) -> set[str]:
        return {provider.peer_id for provider in (await self.kad.find_providers(key)).providers}


@dataclass
class StockDht:
    """libp2p's."""

    dht: KadDHT
    protocol: str = PROTOCOL_ID

    async def join(self, first: PeerHost) -> None:
        info = PeerInfo(ID.from_base58(first.peer_id), [Multiaddr(a) for a in first.addrs()])
        self.dht.host.get_peerstore().add_addrs(info.peer_id, info.addrs, STOCK_ADDRS_TTL_S)
        await self.dht.host.connect(info)
        await self.dht.routing_table.add_peer(info, skip_server_mode_check=True)
        await self.dht.refresh_routing_table()

    async def provide(self, key: bytes) -> None:
        await self.dht.provide(key.hex())

    async def find(self, key: bytes) -> set[str]:
        return {info.peer_id.to_base58() for info in await self.dht.find_providers(key.hex())}


@asynccontextmanager
async def open_dht(host: PeerHost, *, is_stock: bool) -> AsyncIterator[Dht]:
    """The DHT of one host, serving."""
    if not is_stock:
        async with open_kad(host, network=NETWORK, server=True) as kad:
            yield OurDht(kad)
        return
    # It looks addresses up in the peer store, which our host empties of whoever left.
    host.upstream.peerstore.clear_peerdata = lambda peer_id: None  # type: ignore[method-assign]
    dht = KadDHT(host.upstream, DHTMode.SERVER)
    async with background_trio_service(dht):
        yield StockDht(dht)


@dataclass(eq=False)
class Member:
    """One peer, alive in a task of its own until it leaves."""

    host: PeerHost = field(init=False)
    dht: Dht = field(init=False)
    leaving: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)

    async def leave(self) -> None:
        """Close it, connections and all."""
        self.leaving.set()
        await self.gone.wait()

    def fall_silent(self) -> None:
        """Take connections and streams from here on, and never answer."""
        self.host.set_stream_handler(self.dht.protocol, _never_answer)


async def _never_answer(stream: PeerStream) -> None:
    await trio.sleep_forever()


@dataclass
class Lab:
    """The peers of one network. Make one with `open_lab`."""

    nursery: trio.Nursery
    is_stock: bool
    dice: random.Random
    living: list[Member] = field(default_factory=list)

    async def add(self) -> Member:
        """A new peer, which knows one of those that live; the first knows nobody."""
        member = Member()
        await self.nursery.start(self._live, member)
        if self.living:
            await member.dht.join(self.living[0].host)
        self.living.append(member)
        # A full collection looks at all peers' objects: 1.3 s at a hundred, 20 ms at one.
        gc.freeze()
        return member

    async def _live(self, member: Member, task_status: trio.TaskStatus[None]) -> None:
        async with (
            open_host(throwaway_identity(), listen=[LOOPBACK]) as member.host,
            open_dht(member.host, is_stock=self.is_stock) as member.dht,
        ):
            task_status.started()
            await member.leaving.wait()
        member.gone.set()

    async def kill(self, members: list[Member]) -> None:
        """Close these, all at once."""
        for member in members:
            self.living.remove(member)
        async with trio.open_nursery() as nursery:
            for member in members:
                nursery.start_soon(member.leave)

    def silence(self, members: list[Member]) -> None:
        """Have these take streams and never answer."""
        for member in members:
            self.living.remove(member)
            member.fall_silent()

    def mean_connections(self) -> float:
        """Open connections of one peer."""
        return sum(len(m.host.connections()) for m in self.living) / len(self.living)


@asynccontextmanager
async def open_lab(n_peers: int, *, is_stock: bool, seed: int) -> AsyncIterator[Lab]:
    """A network of `n_peers`, each joined through the first."""
    async with trio.open_nursery() as nursery:
        lab = Lab(nursery, is_stock, random.Random(seed))
        for _ in range(n_peers):
            await lab.add()
        yield lab
        gc.unfreeze()
        nursery.cancel_scope.cancel()
