"""Each fault of libp2p's KadDHT that ours was written for, shown on both under the same condition.

Every test lets the same thing happen twice, to libp2p's DHT and to ours, on hosts of ours (libp2p's
own have faults of their own). The stock run must show the fault: when it no longer does, after an
update, the piece of ours that mends it may go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.kad_dht import kad_dht, peer_routing, provider_store
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr
from trio.testing import wait_all_tasks_blocked

from tests.dht.donating import identity_of
from tests.peer.hosts import LOOPBACK, open_asking_host, wait_until
from tokenplace import defaults
from tokenplace.dht.kad import Kad, open_kad
from tokenplace.dht.messages import PeerAddrs
from tokenplace.dht.rpc import QueryFailed, query
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import Identity, throwaway_identity
from tokenplace.peer.streams import PeerStream

KEY, LATER_KEY = b"k" * 32, b"l" * 32
NETWORK = "stock"
IPFS = "/ipfs/kad/1.0.0"
SQUATTER_ADDR = "/ip4/127.0.0.1/tcp/9"


def info_of(host: PeerHost) -> PeerInfo:
    return PeerInfo(ID.from_base58(host.peer_id), [Multiaddr(addr) for addr in host.addrs()])


@dataclass
class Ours:
    """One peer's part in our DHT."""

    host: PeerHost
    kad: Kad
    protocol: str = defaults.DHT_PROTOCOL.format(network=NETWORK)

    async def join(self, first: PeerHost) -> None:
        assert await self.kad.join([(first.peer_id, first.addrs())]) == 1

    async def know(self, other: PeerHost) -> None:
        """Have a peer in the routing table, whatever it answers."""
        self.kad._table.add(PeerAddrs(other.peer_id, tuple(other.addrs())), "127.0.0.1")

    def table(self) -> set[str]:
        return set(self.kad.peers())

    async def provide(self, key: bytes) -> bool:
        return await self.kad.provide(key) > 0

    async def find(self, key: bytes, soft_s: float = 1.5) -> list[PeerAddrs]:
        return list((await self.kad.find_providers(key, soft_s=soft_s)).providers)

    def squat(self, key: bytes, peer_id: str) -> None:
        squatter = PeerAddrs(peer_id, (SQUATTER_ADDR,))
        assert self.kad._store.add(key, squatter, "20.1.0.1", trio.current_time())

    def stored(self, key: bytes) -> set[str]:
        return {peer.peer_id for peer in self.kad._store.get(key, trio.current_time())}

    async def stop_providing(self, key: bytes) -> None:
        await self.kad.withdraw([key])


@dataclass
class Stock:
    """One peer's part in libp2p's."""

    host: PeerHost
    dht: KadDHT
    protocol: str = IPFS

    async def join(self, first: PeerHost) -> None:
        await self.host.upstream.connect(info_of(first))
        await self.know(first)
        await self.dht.refresh_routing_table()

    async def know(self, other: PeerHost) -> None:
        self.host.upstream.get_peerstore().add_addrs(
            info_of(other).peer_id, info_of(other).addrs, ttl=3600
        )
        await self.dht.routing_table.add_peer(info_of(other), skip_server_mode_check=True)

    def table(self) -> set[str]:
        return {peer_id.to_base58() for peer_id in self.dht.routing_table.get_peer_ids()}

    async def provide(self, key: bytes) -> bool:
        return await self.dht.provide(key.hex())

    async def find(self, key: bytes, soft_s: float = 1.5) -> list[PeerAddrs]:
        infos = await self.dht.find_providers(key.hex())
        return [PeerAddrs(i.peer_id.to_base58(), tuple(map(str, i.addrs))) for i in infos]

    def squat(self, key: bytes, peer_id: str) -> None:
        squatter = PeerInfo(ID.from_base58(peer_id), [Multiaddr(SQUATTER_ADDR)])
        self.dht.provider_store.add_provider(key, squatter)

    def stored(self, key: bytes) -> set[str]:
        return {i.peer_id.to_base58() for i in self.dht.provider_store.get_providers(key)}

    async def stop_providing(self, key: bytes) -> None:
        """There is nothing for it: whoever stops can only leave."""
        await self.host.upstream.close()


Side = Ours | Stock


@asynccontextmanager
async def open_peer(
    is_stock: bool,
    identity: Identity | None = None,
    *,
    first: Side | None = None,
    is_server: bool = True,
) -> AsyncIterator[Side]:
    """A peer that has joined through `first`."""
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(
            open_host(identity or throwaway_identity(), listen=[LOOPBACK])
        )
        side: Side
        if is_stock:
            mode = DHTMode.SERVER if is_server else DHTMode.CLIENT
            dht = KadDHT(host.upstream, mode, protocol_prefix=TProtocol("/tokenplace"))
            await stack.enter_async_context(background_trio_service(dht))
            side = Stock(host, dht)
        else:
            kad = await stack.enter_async_context(open_kad(host, network=NETWORK, server=is_server))
            side = Ours(host, kad)
        if first is not None:
            await side.join(first.host)
        yield side


async def provide_and_wait(provider: Side, server: Side) -> None:
    """Announce KEY, and wait until what `server` makes of it can be seen."""
    assert await provider.provide(KEY)
    assert await provider.provide(LATER_KEY)
    await wait_until(lambda: provider.host.peer_id in server.stored(LATER_KEY))


def server_of(side: Side) -> PeerAddrs:
    return PeerAddrs(side.host.peer_id, tuple(side.host.addrs()))


# ---------------------------------------------------------------- being asked


async def test_a_private_network_does_not_speak_the_public_ones_protocol() -> None:
    async def speaks_ipfs(is_stock: bool) -> bool:
        async with open_peer(is_stock) as server, open_asking_host() as asker:
            message = Message(type=Message.FIND_NODE, key=KEY)
            try:
                await query(asker, IPFS, server_of(server), message)
            except QueryFailed:
                return False
            return True

    assert await speaks_ipfs(True), "fault: kad_dht.py:340, whatever protocol_prefix says"
    assert not await speaks_ipfs(False)


async def test_who_can_only_ask_stays_out_of_the_routing_tables() -> None:
    async def is_client_in_table(is_stock: bool) -> bool:
        async with (
            open_peer(is_stock) as server,
            open_peer(is_stock, first=server) as other,
            open_peer(is_stock, first=server, is_server=False) as client,
        ):
            await client.find(KEY)
            await wait_until(lambda: other.host.peer_id in server.table())
            await wait_all_tasks_blocked(0.1)  # until everybody was looked at
            return client.host.peer_id in server.table()

    assert await is_client_in_table(True), "fault: kad_dht.py:632"
    assert not await is_client_in_table(False)


async def test_idle_streams_of_one_peer_do_not_stop_a_server() -> None:
    async def is_answered(is_stock: bool) -> bool:
        async with (
            open_peer(is_stock) as server,
            open_asking_host() as attacker,
            open_asking_host() as bystander,
        ):
            peer = server_of(server)
            for _ in range(12):
                await attacker.open_stream(peer.peer_id, server.protocol, peer.addrs)
            await wait_all_tasks_blocked(0.05)
            message = Message(type=Message.FIND_NODE, key=KEY)
            try:
                await query(bystander, server.protocol, peer, message)
            except QueryFailed:
                return False
            return True

    assert not await is_answered(True), "fault: kad_dht.py:587"
    assert await is_answered(False)


async def test_nobody_stores_values_here() -> None:
    async def is_stored(is_stock: bool) -> bool:
        async with open_peer(is_stock) as server, open_asking_host() as stranger:
            put = Message(type=Message.PUT_VALUE, key=KEY)
            put.record.key, put.record.value = KEY, b"whatever a stranger likes"
            try:
                await query(stranger, server.protocol, server_of(server), put)
                get = Message(type=Message.GET_VALUE, key=KEY)
                answer = await query(stranger, server.protocol, server_of(server), get)
            except QueryFailed:
                return False
            return bool(answer.message.record.value)

    assert await is_stored(True), "fault: kad_dht.py:1156, any key without a namespace"
    assert not await is_stored(False)


# ---------------------------------------------------------------- announcing


async def test_what_counts_as_announced_is_stored() -> None:
    keys = [bytes([number]) * 32 for number in range(30)]

    async def announced_and_stored(is_stock: bool) -> tuple[int, int]:
        async with open_peer(is_stock) as server, open_peer(is_stock, first=server) as provider:
            announced = [await provider.provide(key) for key in keys]
            await wait_all_tasks_blocked(0.1)
            stored = [provider.host.peer_id in server.stored(key) for key in keys]
            return sum(announced), sum(stored)

    n_announced, n_stored = await announced_and_stored(True)
    assert n_announced == 30
    assert 0 < n_stored <= 10, "fault: provider_store.py:275 and kad_dht.py:313"
    assert await announced_and_stored(False) == (30, 30)


async def test_squatters_do_not_keep_a_newcomer_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_PROVIDERS_PER_KEY", 20)

    async def is_newcomer_stored(is_stock: bool) -> bool:
        async with open_peer(is_stock) as server, open_peer(is_stock, first=server) as newcomer:
            for number in range(20):
                server.squat(KEY, identity_of(f"squatter {number}").peer_id)
            await provide_and_wait(newcomer, server)
            return newcomer.host.peer_id in server.stored(KEY)

    assert not await is_newcomer_stored(True), "fault: provider_store.py:585, for two days"
    assert await is_newcomer_stored(False)


async def test_who_stops_is_named_no_more() -> None:
    async def is_named(is_stock: bool) -> bool:
        async with (
            open_peer(is_stock) as server,
            open_peer(is_stock, first=server) as provider,
            open_peer(is_stock, first=server) as asker,
        ):
            await provide_and_wait(provider, server)
            await provider.stop_providing(KEY)
            found = await asker.find(KEY)
            return provider.host.peer_id in {peer.peer_id for peer in found}

    assert await is_named(True), "fault: provider_store.py has no way to take a record back"
    assert not await is_named(False)


# ---------------------------------------------------------------- asking


async def test_who_moved_is_found_where_it_is_now_also_by_who_knew_it() -> None:
    identity = identity_of("alice")

    async def is_found_at_its_new_address(is_stock: bool) -> bool:
        async with (
            open_peer(is_stock) as server,
            open_peer(is_stock, first=server, is_server=False) as asker,
        ):
            async with open_peer(is_stock, identity, first=server) as alice:
                await provide_and_wait(alice, server)
                assert await asker.find(KEY)
            async with open_peer(is_stock, identity, first=server) as alice:
                await provide_and_wait(alice, server)
                await wait_all_tasks_blocked(0.1)
                [found] = await asker.find(KEY)
                new = {addr.partition("/p2p/")[0] for addr in alice.host.addrs()}
                return {addr.partition("/p2p/")[0] for addr in found.addrs} == new

    assert not await is_found_at_its_new_address(True), "fault: provider_store.py:371"
    assert await is_found_at_its_new_address(False)


async def test_everybody_is_found_once() -> None:
    async def times_found(is_stock: bool) -> int:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(open_peer(is_stock))
            servers = [first]
            for _ in range(2):
                opening = open_peer(is_stock, first=first)
                servers.append(await stack.enter_async_context(opening))
            provider = await stack.enter_async_context(open_peer(is_stock, first=first))
            await provider.provide(KEY)
            for server in servers:
                await wait_until(lambda s=server: provider.host.peer_id in s.stored(KEY))
            asker = await stack.enter_async_context(
                open_peer(is_stock, first=first, is_server=False)
            )
            found = [peer.peer_id for peer in await asker.find(KEY)]
            return found.count(provider.host.peer_id)

    assert await times_found(True) > 1, "fault: provider_store.py:433"
    assert await times_found(False) == 1


async def never_answer(stream: PeerStream) -> None:
    await trio.sleep_forever()


async def test_a_silent_peer_neither_delays_what_others_know_nor_stays_in_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timeout_s = 1.0
    for module in (kad_dht, peer_routing, provider_store):
        monkeypatch.setattr(module, "QUERY_TIMEOUT", timeout_s)
    monkeypatch.setattr(defaults, "QUERY_TIMEOUT_S", timeout_s)

    async def seconds_and_is_known(is_stock: bool) -> tuple[float, bool]:
        async with (
            open_peer(is_stock) as server,
            open_peer(is_stock, first=server) as provider,
            open_peer(is_stock, first=server, is_server=False) as asker,
            open_host(throwaway_identity(), listen=[LOOPBACK]) as silent,
        ):
            silent.set_stream_handler(asker.protocol, never_answer)
            await provide_and_wait(provider, server)
            await asker.know(silent)
            start = trio.current_time()
            assert await asker.find(KEY, soft_s=0.2)
            took_s = trio.current_time() - start
            await asker.find(b"nobody provides this key" + bytes(8))
            return took_s, silent.peer_id in asker.table()

    took_s, is_known = await seconds_and_is_known(True)
    assert took_s > 0.9 * timeout_s, "fault: each batch waits for its slowest, 10 s by default"
    assert is_known, "fault: whoever does not answer stays in the table"
    took_s, is_known = await seconds_and_is_known(False)
    assert took_s < timeout_s
    assert not is_known
