"""The DHT: who provides which key. Start at `open_kad`.

libp2p's wire format (`messages`) and metric are used as they are; its service, `KadDHT`, is
replaced. That (files in `libp2p/kad_dht`, each fault with a test in `tests/dht/test_stock_dht.py`)

- spoke the public IPFS protocol id whatever it was told (`kad_dht.py:340`);
- returned what it had stored two days ago, once also all that it had ever been told, before asking
  anybody (`provider_store.py:371`), and one provider several times (`provider_store.py:433`);
- counted a record as stored when its bytes were written (`provider_store.py:275`), while receivers
  dropped all but 10 in 10 s (`kad_dht.py:313`).

What else it got wrong is mended in `server` (the other side of a query), `members` (who is in the
routing table), `table`, `providers` and `rpc`; the way through the network is in `walk`.

Records are hints: who they name, and where, is only claimed. Values do not exist here.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message

from tokenplace import defaults
from tokenplace.dht.members import Members
from tokenplace.dht.messages import PeerAddrs, add_provider, get_peers
from tokenplace.dht.probing import probe_forever
from tokenplace.dht.providers import ProviderStore
from tokenplace.dht.server import KadServer
from tokenplace.dht.table import PeerTable
from tokenplace.dht.walk import Ask, WalkResult, walk
from tokenplace.peer.background import open_background
from tokenplace.peer.host import PeerHost


@dataclass(frozen=True, slots=True)
class ProviderSearch:
    """What one search found.

    providers: each once, those whom most servers named first, this peer left out; of each, the
    addresses named most often first.
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
    addrs: Callable[[], Sequence[str]] | None = None,
    clock: Callable[[], float] = trio.current_time,
) -> AsyncIterator[Kad]:
    """Take part in the DHT of `network` until the block exits.

    server: answer others and be known to them; a client only asks, and stays out of everybody's
    routing table. `Kad.serve` and `Kad.stop_serving` change it at any time.
    addrs: where others are told to dial this peer; `host.addrs` unless said otherwise.
    allow_private: whether private and loopback addresses that strangers name may be dialled.
    clock: seconds, for the expiry of records stored here.
    """
    protocol = defaults.DHT_PROTOCOL.format(network=network)
    table = PeerTable(host.peer_id)
    store = ProviderStore()
    async with open_background() as nursery:
        members = Members(host, protocol, table, nursery, clock, allow_private=allow_private)
        kad = Kad(host, protocol, table, members, store, clock, addrs or host.addrs)
        nursery.start_soon(kad._refresh_forever)
        nursery.start_soon(members.recheck_forever)
        for _ in range(defaults.ALPHA):
            nursery.start_soon(members.probe_suspects)
        for _ in range(defaults.PROVIDER_PROBES):
            nursery.start_soon(probe_forever, host, store, members, clock)
        if server:
            kad.serve()
        try:
            yield kad
        finally:
            kad.stop_serving()
            members.stop_asking()


class Kad:
    """This peer's part in the DHT. Make one with `open_kad`."""

    def __init__(
        self,
        host: PeerHost,
        protocol: str,
        table: PeerTable,
        members: Members,
        store: ProviderStore,
        clock: Callable[[], float],
        addrs: Callable[[], Sequence[str]],
    ) -> None:
        self._host = host
        self._protocol = protocol
        self._table = table
        self._members = members
        self._store = store
        self._clock = clock
        self._addrs = addrs
        self._is_server = False
        self._holders: dict[bytes, dict[str, PeerAddrs]] = {}
        self._on_provided: Callable[[str], None] | None = None

    @property
    def is_server(self) -> bool:
        """Does this peer answer others?"""
        return self._is_server

    def serve(self) -> None:
        """Answer others from now on, and so become known to them."""
        if self._is_server:
            return
        server = KadServer(
            self._host,
            self._table,
            self._store,
            self._clock,
            self._members.suspect,
            self._note_provided,
            self._addrs,
        )
        self._host.set_stream_handler(
            self._protocol,
            server.handle,
            max_streams_per_peer=defaults.MAX_DHT_STREAMS_PER_PEER,
            max_streams=defaults.MAX_DHT_STREAMS,
        )
        self._is_server = True

    def stop_serving(self) -> None:
        """Only ask from now on; those who know this peer drop it when it does not answer."""
        if self._is_server:
            self._host.remove_stream_handler(self._protocol)
            self._is_server = False

    def reconsider(self, peer_id: str) -> None:
        """Whoever was met as a client may be a server by now: see when it asks next."""
        self._members.reconsider(peer_id)

    def n_peers(self) -> int:
        """How many servers are in the routing table, those in doubt not counted."""
        return len(self._table)

    def servers(self) -> list[PeerAddrs]:
        """The servers in the routing table, those in doubt left out."""
        return self._table.peers()

    def peers(self) -> list[str]:
        """The peer ids of `servers`."""
        return [peer.peer_id for peer in self._table.peers()]

    async def join(self, peers: Sequence[tuple[str, Sequence[str]]]) -> int:
        """Get to know the DHT through `peers` (peer id and addresses); how many of them answered.

        All are asked at once. Takes about as long as the slowest, `QUERY_TIMEOUT_S` at most, and a
        walk.
        """
        answered = await self._members.probe_all(
            PeerAddrs(peer_id, tuple(addrs)) for peer_id, addrs in peers
        )
        if answered:
            await self.refresh()
        return answered

    async def refresh(self) -> None:
        """Look around: near this peer's own id and somewhere else; enter who answers."""
        for key in (self._host.identity.peer_id_bytes, os.urandom(32)):
            result = await self._walk(key, self._ask_closer(key))
            await self._members.probe_all(
                peer for peer in result.closest if not self._table.has(peer.peer_id)
            )

    async def provide(self, key: bytes) -> int:
        """Announce this peer at the `K` servers closest to `key`; how many confirmed to store it.

        The record lives `PROVIDER_TTL_S`. A peer without addresses cannot be found, and announces
        nothing.
        """
        me = PeerAddrs(self._host.peer_id, tuple(self._addrs()[: defaults.MAX_PEER_ADDRS]))
        if not me.addrs:
            return 0
        if self._is_server:
            self._store.add(key, me, "127.0.0.1", self._clock())
        message = add_provider(key, me)

        holders = self._holders.setdefault(key, {})
        n_confirmed = 0

        async def announce(peer: PeerAddrs) -> None:
            nonlocal n_confirmed
            answer = await self._members.query(peer, message)
            if answer is not None and answer.key == key:
                holders.pop(peer.peer_id, None)
                holders[peer.peer_id] = peer
                n_confirmed += 1

        result = await self._walk(key, self._ask_closer(key))
        async with trio.open_nursery() as nursery:
            for peer in result.closest:
                nursery.start_soon(announce, peer)
        for peer_id in list(holders)[: -defaults.MAX_HOLDERS]:
            del holders[peer_id]
        return n_confirmed

    def unprovide(self, key: bytes) -> None:
        """Forget that this peer provides `key`. Other servers forget it when its record expires."""
        self._store.remove(key, self._host.peer_id)
        self._holders.pop(key, None)

    async def withdraw(self, keys: Iterable[bytes]) -> None:
        """Forget that this peer provides `keys`, and have those forget it that confirmed to know.

        Takes `WITHDRAW_TIMEOUT_S` at most; whoever was not told by then forgets when it expires.
        """
        to_tell: dict[str, tuple[PeerAddrs, list[bytes]]] = {}
        for key in keys:
            for holder in self._holders.get(key, {}).values():
                to_tell.setdefault(holder.peer_id, (holder, []))[1].append(key)
            self.unprovide(key)
        limiter = trio.CapacityLimiter(defaults.PARALLEL_WITHDRAWALS)
        with trio.move_on_after(defaults.WITHDRAW_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                # Those first for whom nobody has to be dialled.
                for holder, held in sorted(
                    to_tell.values(), key=lambda told: not self._host.is_connected(told[0].peer_id)
                ):
                    nursery.start_soon(self._members.take_back, holder, held, limiter)

    def on_provided(self, told: Callable[[str], None]) -> None:
        """Have `told` called with the peer id of whoever announces a record here; not to wait."""
        self._on_provided = told

    def _note_provided(self, peer_id: str) -> None:
        if self._on_provided is not None:
            self._on_provided(peer_id)

    async def find_providers(
        self,
        key: bytes,
        *,
        enough: int = defaults.MAX_PROVIDERS_PER_KEY,
        deadline_s: float = defaults.WALK_TIMEOUT_S,
        soft_s: float = defaults.WALK_SOFT_S,
        is_thorough: bool = False,
    ) -> ProviderSearch:
        """Who announced `key`, asked of the network each time.

        Ends when the walk does, when `enough` are known, after `soft_s` with any, or after
        `deadline_s`; also when `ENOUGH_ANSWERS` of the closest have answered and any are known,
        unless it is to be thorough.
        """
        found = _Found(self._host.peer_id, enough)
        found.add(self._members.reachable(self._store.get(key, self._clock())))
        message = Message(type=Message.GET_PROVIDERS, key=key)

        async def ask(peer: PeerAddrs) -> list[PeerAddrs] | None:
            answer = await self._members.query(peer, message)
            if answer is None:
                return None
            providers = get_peers(answer.providerPeers, defaults.MAX_PROVIDERS_PER_KEY)
            found.add(self._members.reachable(providers))
            return self._members.reachable(get_peers(answer.closerPeers, defaults.K))

        async def stop_early(scope: trio.CancelScope) -> None:
            with trio.move_on_after(soft_s):
                await found.has_enough.wait()
            await found.has_any.wait()
            scope.cancel()

        complete = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_early, nursery.cancel_scope)
            result = await self._walk(
                key, ask, deadline_s, lambda: found.has_any.is_set() and not is_thorough
            )
            complete = result.complete
            nursery.cancel_scope.cancel()
        return ProviderSearch(found.providers(), complete)

    async def _walk(
        self,
        key: bytes,
        ask: Ask,
        deadline_s: float = defaults.WALK_TIMEOUT_S,
        is_satisfied: Callable[[], bool] = lambda: False,
    ) -> WalkResult:
        return await walk(
            key,
            self._table.closest(key, defaults.K),
            ask,
            me=self._host.peer_id,
            deadline_s=deadline_s,
            is_near=self._host.is_connected,
            is_doubtful=self._members.is_doubtful,
            is_satisfied=is_satisfied,
        )

    def _ask_closer(self, key: bytes) -> Ask:
        message = Message(type=Message.FIND_NODE, key=key)

        async def ask(peer: PeerAddrs) -> list[PeerAddrs] | None:
            answer = await self._members.query(peer, message)
            if answer is None:
                return None
            return self._members.reachable(get_peers(answer.closerPeers, defaults.K))

        return ask

    async def _refresh_forever(self) -> None:
        while True:
            # Jittered and few at a time: peers that came together must not look around together.
            await trio.sleep(defaults.TABLE_REFRESH_S * random.uniform(0.75, 1.25))
            self._store.drop_expired(self._clock())
            await self._members.probe_all(
                self._table.least_recently_heard(defaults.K), n_at_once=defaults.ALPHA
            )
            await self.refresh()


@dataclass(slots=True)
class _Found:
    """Providers gathered by one search: of each, how many records name which address."""

    me: str
    enough: int
    has_any: trio.Event = field(default_factory=trio.Event)
    has_enough: trio.Event = field(default_factory=trio.Event)
    _n_named: Counter[str] = field(default_factory=Counter)
    _addrs: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, providers: Iterable[PeerAddrs]) -> None:
        """Take what one server said; it has one voice, however often it repeats itself."""
        for provider in {provider.peer_id: provider for provider in providers}.values():
            if provider.peer_id != self.me:
                self._n_named[provider.peer_id] += 1
                self._addrs.setdefault(provider.peer_id, Counter()).update(provider.addrs)
        if self._addrs:
            self.has_any.set()
        if len(self._addrs) >= self.enough:
            self.has_enough.set()

    def providers(self) -> tuple[PeerAddrs, ...]:
        return tuple(
            PeerAddrs(
                peer_id,
                tuple(
                    addr for addr, _ in self._addrs[peer_id].most_common(defaults.MAX_PEER_ADDRS)
                ),
            )
            for peer_id, _ in self._n_named.most_common()
        )
