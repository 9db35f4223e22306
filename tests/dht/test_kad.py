"""The DHT among real hosts on loopback, each knowing only the first."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from tests.dht.kad_lab import (
    KEY,
    OTHER_KEY,
    addrs_of,
    ids_of,
    ids_of_members,
    knows,
    open_dht,
)
from tests.peer.hosts import closed_port, open_silent_port, wait_until
from tokenplace import defaults
from tokenplace.dht.kad import Kad, open_kad
from tokenplace.dht.messages import PeerAddrs
from tokenplace.errors import NoDonorForModel
from tokenplace.peer.host import open_host
from tokenplace.peer.identity import throwaway_identity


async def test_what_is_provided_is_confirmed_and_found() -> None:
    async with open_dht(5) as dht:
        alice = dht.servers[3]
        assert await alice.kad.provide(KEY) == 4
        client = await dht.add_client()
        found = await client.kad.find_providers(KEY)
        assert found.providers == (PeerAddrs(alice.host.peer_id, addrs_of(alice)),)
        assert found.complete
        nothing = await client.kad.find_providers(OTHER_KEY)
        assert nothing.providers == ()
        assert nothing.complete


async def test_every_provider_is_found_once() -> None:
    async with open_dht(5) as dht:
        for member in dht.servers[1:4]:
            await member.kad.provide(KEY)
        client = await dht.add_client()
        found = await client.kad.find_providers(KEY)
        assert len(found.providers) == 3
        assert ids_of(found.providers) == ids_of_members(dht.servers[1:4])
        among_themselves = await dht.servers[1].kad.find_providers(KEY)
        assert ids_of(among_themselves.providers) == ids_of_members(dht.servers[2:4])


async def test_a_client_may_provide_nothing_and_is_in_no_table() -> None:
    async with open_dht(3) as dht:
        client = await dht.add_client()
        assert await client.kad.provide(KEY) == 0
        await client.kad.find_providers(KEY)
        await client.kad.refresh()
        await wait_until(lambda: not any(kad_is_probing(member.kad) for member in dht.servers))
        assert client.kad.n_peers() == 3
        for member in dht.servers:
            assert client.host.peer_id not in member.kad.peers()
            assert member.kad.n_peers() == 2


def kad_is_probing(kad: Kad) -> bool:
    waiting = kad._members._suspects_out.statistics()
    return waiting.current_buffer_used > 0 or waiting.tasks_waiting_receive < defaults.ALPHA


async def test_a_provider_that_moved_is_found_where_it_is_now() -> None:
    async with open_dht(4) as dht:
        identity = throwaway_identity()
        alice = await dht.add_server(identity)
        await alice.kad.provide(KEY)
        old_client = await dht.add_client()
        old_addrs = (await old_client.kad.find_providers(KEY)).providers[0].addrs
        dht.servers.remove(alice)
        await alice.leave()
        moved = await dht.add_server(identity)
        await moved.kad.provide(KEY)
        for client in (old_client, await dht.add_client()):
            [provider] = (await client.kad.find_providers(KEY)).providers
            assert provider.addrs == addrs_of(moved)
            assert provider.addrs != old_addrs
            await client.host.connect(provider.peer_id, provider.addrs)


async def test_a_provider_that_is_gone_is_forgotten() -> None:
    async with open_dht(3) as dht:
        alice = dht.servers[2]
        await alice.kad.provide(KEY)
        alice.kad.unprovide(KEY)
        client = await dht.add_client()
        assert (await client.kad.find_providers(KEY)).providers, "the others still remember"
        dht.clock.now += defaults.PROVIDER_TTL_S
        assert (await client.kad.find_providers(KEY)).providers == ()


async def test_unproviding_what_was_never_provided_does_nothing() -> None:
    async with open_dht(1) as dht:
        dht.servers[0].kad.unprovide(KEY)


async def test_a_server_that_left_leaves_the_tables() -> None:
    async with open_dht(4) as dht:
        gone = dht.servers.pop()
        await gone.leave()
        for member in dht.servers:
            await member.kad.refresh()
            assert set(member.kad.peers()) == ids_of_members(dht.servers) - {member.host.peer_id}
        assert await dht.servers[0].kad.provide(KEY) == 2


async def test_a_server_that_failed_once_is_asked_again_and_keeps_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "RECHECK_S", 0.2)
    async with open_dht(3) as dht:
        alice, bob = dht.servers[1:]
        asked_at = trio.current_time()
        alice.kad._table.note_failed(bob.host.peer_id, asked_at=asked_at, now=asked_at)
        assert bob.host.peer_id not in alice.kad.peers()
        assert alice.kad.n_peers() == 1
        await wait_until(lambda: bob.host.peer_id in alice.kad.peers())
        await bob.leave()
        alice.kad._table.note_failed(bob.host.peer_id, asked_at=asked_at, now=asked_at)
        await wait_until(lambda: not alice.kad._table.has(bob.host.peer_id))


async def test_tables_are_refreshed_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "TABLE_REFRESH_S", 0.2)
    async with open_dht(3) as dht:
        gone = dht.servers.pop()
        await gone.leave()
        everybody = ids_of_members(dht.servers)
        for member in dht.servers:
            await wait_until(partial(knows, member, everybody))


async def test_networks_do_not_see_each_other() -> None:
    async with open_dht(2) as main, open_dht(2, "lab") as lab:
        await main.servers[1].kad.provide(KEY)
        first = lab.servers[0].host
        assert await main.servers[0].kad.join([(first.peer_id, first.addrs())]) == 0
        assert main.servers[0].kad.peers() == [main.servers[1].host.peer_id]
        assert (await lab.servers[0].kad.find_providers(KEY)).providers == ()


async def test_one_host_may_take_part_in_two_networks() -> None:
    async with open_dht(2) as main:
        both = main.servers[1]
        async with open_kad(both.host, network="lab", server=True), open_dht(0, "lab") as lab:
            lab.servers.append(both)
            client = await lab.add_client()
            assert client.kad.peers() == [both.host.peer_id]


async def test_joining_counts_who_answered() -> None:
    async with open_dht(1) as dht, open_silent_port() as silent:
        first, kad = dht.servers[0].host, (await dht.add_client()).kad
        start = trio.current_time()
        answered = await kad.join(
            [
                (throwaway_identity().peer_id, [f"/ip4/127.0.0.1/tcp/{closed_port()}"]),
                (throwaway_identity().peer_id, [f"/ip4/127.0.0.1/tcp/{silent}"]),
                ("ALICE", ["no address"]),
                (first.peer_id, first.addrs()),
            ]
        )
        assert answered == 1
        assert trio.current_time() - start < defaults.QUERY_TIMEOUT_S + 2
        assert kad.peers() == [first.peer_id]


async def test_nobody_joined_is_no_complete_search() -> None:
    async with (
        open_host(throwaway_identity()) as host,
        open_kad(host, network="main", server=False) as kad,
    ):
        assert await kad.join([]) == 0
        found = await kad.find_providers(KEY)
        assert found.providers == ()
        assert not found.complete


async def test_enough_is_enough() -> None:
    async with open_dht(4) as dht:
        for member in dht.servers:
            await member.kad.provide(KEY)
        client = await dht.add_client()
        found = await client.kad.find_providers(KEY, enough=1)
        assert found.providers


async def test_what_was_found_is_not_held_back_by_silent_peers() -> None:
    async with open_dht(3) as dht, open_silent_port() as silent:
        await dht.servers[1].kad.provide(KEY)
        client = await dht.add_client()
        ghost = PeerAddrs(throwaway_identity().peer_id, (f"/ip4/127.0.0.1/tcp/{silent}",))
        client.kad._table.add(ghost, "127.0.0.1")
        start = trio.current_time()
        found = await client.kad.find_providers(KEY, soft_s=0.3)
        assert ids_of(found.providers) == {dht.servers[1].host.peer_id}
        assert not found.complete
        assert trio.current_time() - start < defaults.QUERY_TIMEOUT_S


async def test_a_silent_peer_is_found_out_though_nobody_waited_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "QUERY_TIMEOUT_S", 1.0)
    async with open_dht(3) as dht, open_silent_port() as silent:
        await dht.servers[1].kad.provide(KEY)
        client = await dht.add_client()
        ghost = PeerAddrs(throwaway_identity().peer_id, (f"/ip4/127.0.0.1/tcp/{silent}",))
        client.kad._table.add(ghost, "127.0.0.1")
        assert (await client.kad.find_providers(KEY, soft_s=0.0)).providers
        await wait_until(lambda: client.kad._members.is_doubtful(ghost.peer_id))
        assert ghost.peer_id not in client.kad.peers()
        assert not client.kad._members.is_doubtful(dht.servers[1].host.peer_id)


async def test_whom_most_servers_name_comes_first() -> None:
    async with open_dht(4) as dht:
        await dht.servers[2].kad.provide(KEY)
        for number in range(5):
            squatter = PeerAddrs(
                throwaway_identity().peer_id, (f"/ip4/127.0.0.1/tcp/{number + 1}",)
            )
            dht.servers[0].kad._store.add(KEY, squatter, "127.0.0.1", dht.clock())
        client = await dht.add_client()
        found = await client.kad.find_providers(KEY, is_thorough=True)
        assert found.complete
        assert len(found.providers) == 6
        assert found.providers[0].peer_id == dht.servers[2].host.peer_id


async def test_the_table_takes_the_address_a_peer_has_now() -> None:
    async with open_dht(2) as dht:
        alice, bob = dht.servers
        stale = PeerAddrs(bob.host.peer_id, ("/ip4/127.0.0.1/tcp/1",))
        alice.kad._table.add(stale, "127.0.0.1")
        await alice.kad._members.probe_all([stale])
        await alice.kad._members.probe_all(alice.kad._table.closest(KEY, 20))
        assert alice.kad._table.closest(KEY, 20) == [PeerAddrs(bob.host.peer_id, addrs_of(bob))]


async def test_private_addresses_of_strangers_are_not_dialled_where_that_is_forbidden() -> None:
    async with open_dht(2) as dht:
        first, alice = dht.servers
        await alice.kad.provide(KEY)
        async with (
            open_host(throwaway_identity()) as host,
            open_kad(host, network="main", server=False, allow_private=False) as kad,
        ):
            assert await kad.join([(first.host.peer_id, first.host.addrs())]) == 1
            found = await kad.find_providers(KEY)
            assert found.complete
            assert found.providers == ()
            assert kad.peers() == [first.host.peer_id]
            assert not host.is_connected(alice.host.peer_id)


async def test_who_has_left_the_dht_finds_nothing() -> None:
    async with open_dht(2) as dht:
        first = dht.servers[0].host
        async with open_host(throwaway_identity()) as host:
            async with open_kad(host, network="main", server=False) as kad:
                assert await kad.join([(first.peer_id, first.addrs())]) == 1
            found = await kad.find_providers(KEY)
            assert found.providers == ()
            assert not found.complete


async def test_an_error_inside_the_block_leaves_it_bare() -> None:
    async with open_host(throwaway_identity()) as host:
        with pytest.raises(NoDonorForModel):
            async with open_kad(host, network="main", server=True):
                raise NoDonorForModel
