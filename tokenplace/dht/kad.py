"""The DHT: who provides which key. Start at `open_kad`.

libp2p's KadDHT in parts: its wire format (`messages`), its routing table (`table`) and its metric
are used as they are; its service is replaced. That spoke the public IPFS protocol id whatever it
was told, returned a two days old cache before asking anybody, counted a record as stored when its
bytes were written, let anybody who opened a stream into every routing table, and could be stopped
by 12 idle streams. The server's side is in `server`, one query in `rpc`, the way through the
network in `walk`.

Records are hints: who they name, and where, is only claimed. Values do not exist here.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message

from tokenplace import defaults
from tokenplace.dht.addresses import usable_addrs
from tokenplace.dht.messages import PeerAddrs, get_peers, put_peers
from tokenplace.dht.providers import ProviderStore
from tokenplace.dht.rpc import QueryFailed, query
from tokenplace.dht.server import KadServer
from tokenplace.dht.table import PeerTable
from tokenplace.dht.turns import Turns
from tokenplace.dht.walk import Ask, WalkResult, walk
from tokenplace.errors import ConnectFailed
from tokenplace.peer.background import open_background
from tokenplace.peer.host import PeerHost, parse_peer_id

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProviderSearch:
    """What one search found.

    providers: each once, this peer left out; of each, the addresses named most often first.
    complete: the walk ended by itself, so nobody who answered knows of another provider.
    """

    providers: tuple[PeerAddrs, ...]
    complete: bool


@asynccontextmanager
async def open_kad(
    host: PeerHost,
    *,
    network: str,
    server: bool,
    allow_private: bool = True,
    clock: Callable[[], float] = trio.current_time,
) -> AsyncIterator[Kad]:
    """Take part in the DHT of `network` until the block exits.

    server: answer others and be known to them; a client only asks, and stays out of everybody's
    routing table.
    allow_private: whether private and loopback addresses that strangers name may be dialled.
    clock: seconds, for the expiry of records stored here.
    """
    protocol = defaults.DHT_PROTOCOL.format(network=network)
    table = PeerTable(host)
    store = ProviderStore()
    kad = Kad(host, protocol, table, store, clock, is_server=server, allow_private=allow_private)
    async with open_background() as nursery:
        nursery.start_soon(kad._refresh_forever)
        if not server:
            yield kad
            return
        answering = KadServer(host, table, store, clock, kad._suspect)
        host.set_stream_handler(protocol, answering.handle)
        for _ in range(defaults.ALPHA):
            nursery.start_soon(kad._probe_suspects)
        try:
            yield kad
        finally:
            host.remove_stream_handler(protocol)


class Kad:
    """This peer's part in the DHT. Make one with `open_kad`."""

    def __init__(
        self,
        host: PeerHost,
        protocol: str,
        table: PeerTable,
        store: ProviderStore,
        clock: Callable[[], float],
        *,
        is_server: bool,
        allow_private: bool,
    ) -> None:
        self._host = host
        self._protocol = protocol
        self._table = table
        self._store = store
        self._clock = clock
        self._is_server = is_server
        self._allow_private = allow_private
        self._suspects_in, self._suspects_out = trio.open_memory_channel[str](
            defaults.MAX_DHT_STREAMS
        )
        self._not_servers: dict[str, float] = {}
        self._turns = Turns(defaults.DHT_QUERIES_PER_PEER)

    def n_peers(self) -> int:
        """How many servers are in the routing table."""
        return len(self._table)

    def peers(self) -> list[str]:
        """The peer ids in the routing table."""
        return self._table.peers()

    async def join(self, peers: Sequence[tuple[str, Sequence[str]]]) -> int:
        """Get to know the DHT through `peers` (peer id and addresses); how many of them answered.

        All are asked at once. Takes about as long as the slowest, `QUERY_TIMEOUT_S` at most, and a
        walk.
        """
        answered = await self._probe_all(
            PeerAddrs(peer_id, tuple(addrs)) for peer_id, addrs in peers
        )
        if answered:
            await self.refresh()
        return answered

    async def refresh(self) -> None:
        """Look around: near this peer's own id and somewhere else; enter who answers."""
        for key in (self._host.identity.peer_id_bytes, os.urandom(32)):
            result = await self._walk(key, self._ask_closer(key))
            await self._probe_all(
                peer for peer in result.closest if not self._table.has(peer.peer_id)
            )

    async def provide(self, key: bytes) -> int:
        """Announce this peer at the `K` servers closest to `key`; how many confirmed to store it.

        The record lives `PROVIDER_TTL_S`. A host without addresses cannot be found, and announces
        nothing.
        """
        me = PeerAddrs(self._host.peer_id, tuple(self._host.addrs()[: defaults.MAX_PEER_ADDRS]))
        if not me.addrs:
            return 0
        if self._is_server:
            self._store.add(key, me, "127.0.0.1", self._clock())
        message = Message(type=Message.ADD_PROVIDER, key=key)
        put_peers([me], message.providerPeers)
        confirmed = 0

        async def announce(peer: PeerAddrs) -> None:
            nonlocal confirmed
            answer = await self._query(peer, message)
            confirmed += answer is not None and answer.key == key

        result = await self._walk(key, self._ask_closer(key))
        async with trio.open_nursery() as nursery:
            for peer in result.closest:
                nursery.start_soon(announce, peer)
        return confirmed

    def unprovide(self, key: bytes) -> None:
        """Forget that this peer provides `key`. Other servers forget it when its record expires."""
        self._store.remove(key, self._host.peer_id)

    async def find_providers(
        self,
        key: bytes,
        *,
        enough: int = defaults.K,
        deadline_s: float = defaults.WALK_TIMEOUT_S,
        soft_s: float = 1.5,
    ) -> ProviderSearch:
        """Who announced `key`, asked of the network each time.

        Ends when the walk does, when `enough` are known, after `soft_s` with any, or after
        `deadline_s`.
        """
        found = _Found(self._host.peer_id, enough)
        found.add(self._reachable(self._store.get(key, self._clock())))
        message = Message(type=Message.GET_PROVIDERS, key=key)

        async def ask(peer: PeerAddrs) -> list[PeerAddrs] | None:
            answer = await self._query(peer, message)
            if answer is None:
                return None
            providers = get_peers(answer.providerPeers, defaults.MAX_PROVIDERS_PER_KEY)
            found.add(self._reachable(providers))
            return self._reachable(get_peers(answer.closerPeers, defaults.K))

        async def stop_early(scope: trio.CancelScope) -> None:
            with trio.move_on_after(soft_s):
                await found.has_enough.wait()
            await found.has_any.wait()
            scope.cancel()

        complete = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_early, nursery.cancel_scope)
            result = await self._walk(key, ask, deadline_s)
            complete = result.complete
            nursery.cancel_scope.cancel()
        return ProviderSearch(found.providers(), complete)

    async def _walk(
        self, key: bytes, ask: Ask, deadline_s: float = defaults.WALK_TIMEOUT_S
    ) -> WalkResult:
        seeds = self._table.closest(key, defaults.K)
        return await walk(key, seeds, ask, me=self._host.peer_id, deadline_s=deadline_s)

    def _ask_closer(self, key: bytes) -> Ask:
        message = Message(type=Message.FIND_NODE, key=key)

        async def ask(peer: PeerAddrs) -> list[PeerAddrs] | None:
            answer = await self._query(peer, message)
            if answer is None:
                return None
            return self._reachable(get_peers(answer.closerPeers, defaults.K))

        return ask

    def _reachable(self, peers: Iterable[PeerAddrs]) -> list[PeerAddrs]:
        """What strangers said of `peers`, cut to addresses that may be dialled on their word."""
        usable = (
            PeerAddrs(
                p.peer_id, usable_addrs(p.addrs, p.peer_id, allow_private=self._allow_private)
            )
            for p in peers
        )
        return [peer for peer in usable if peer.addrs]

    async def _query(self, peer: PeerAddrs, message: Message) -> Message | None:
        """The peer's answer; a peer without one leaves the table."""
        try:
            async with self._turns.turn(peer.peer_id):
                return await query(self._host, self._protocol, peer, message)
        except QueryFailed as error:
            log.debug("query to %s: %s", peer.peer_id, error)
            self._table.remove(peer.peer_id)
            return None

    # ------------------------------------------------------------ who is a server

    async def _probe(self, peer: PeerAddrs) -> bool:
        """Ask a peer about itself: if it answers it is a server, and enters the table."""
        try:
            key = parse_peer_id(peer.peer_id).to_bytes()
        except ConnectFailed:
            return False
        answer = await self._query(peer, Message(type=Message.FIND_NODE, key=key))
        if answer is None:
            return False
        named = self._reachable(get_peers(answer.closerPeers, defaults.K + 1))
        told = next((known.addrs for known in named if known.peer_id == peer.peer_id), ())
        worked = {addr for known in self._reachable([peer]) for addr in known.addrs}
        # Behind a router or a name it does not know all its addresses: then ours stay too.
        addrs = told if worked & set(told) else (*told, *peer.addrs)
        await self._table.add(PeerAddrs(peer.peer_id, addrs[: defaults.MAX_PEER_ADDRS]))
        return True

    async def _probe_all(self, peers: Iterable[PeerAddrs]) -> int:
        n_answered = 0

        async def probe(peer: PeerAddrs) -> None:
            nonlocal n_answered
            has_answered = await self._probe(peer)  # not in the sum: that would read it too early
            n_answered += has_answered

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(probe, peer)
        return n_answered

    def _suspect(self, peer_id: str) -> None:
        """Somebody asked us: find out soon whether it is a server too, and if not, leave it be."""
        if self._table.has(peer_id) or self._not_servers.get(peer_id, 0.0) > self._clock():
            return
        while len(self._not_servers) >= defaults.MAX_TABLE_PEERS:
            del self._not_servers[next(iter(self._not_servers))]
        self._not_servers[peer_id] = self._clock() + defaults.CLIENT_MEMORY_S
        try:
            self._suspects_in.send_nowait(peer_id)
        except trio.WouldBlock:
            del self._not_servers[peer_id]  # busy; its next query brings it back

    async def _probe_suspects(self) -> None:
        async for peer_id in self._suspects_out:
            if await self._probe(PeerAddrs(peer_id, ())):
                self._not_servers.pop(peer_id, None)

    async def _refresh_forever(self) -> None:
        while True:
            await trio.sleep(defaults.TABLE_REFRESH_S)
            self._store.drop_expired(self._clock())
            await self._probe_all(self._table.least_recently_seen(defaults.K))
            await self.refresh()


@dataclass(slots=True)
class _Found:
    """Providers gathered by one search: of each, how many records name which address."""

    me: str
    enough: int
    has_any: trio.Event = field(default_factory=trio.Event)
    has_enough: trio.Event = field(default_factory=trio.Event)
    _addrs: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, providers: Iterable[PeerAddrs]) -> None:
        for provider in providers:
            if provider.peer_id != self.me:
                self._addrs.setdefault(provider.peer_id, Counter()).update(provider.addrs)
        if self._addrs:
            self.has_any.set()
        if len(self._addrs) >= self.enough:
            self.has_enough.set()

    def providers(self) -> tuple[PeerAddrs, ...]:
        return tuple(
            PeerAddrs(
                peer_id, tuple(addr for addr, _ in addrs.most_common(defaults.MAX_PEER_ADDRS))
            )
            for peer_id, addrs in self._addrs.items()
        )
