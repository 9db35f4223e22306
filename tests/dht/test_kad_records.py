"""Records taken back, and records of squatters, among real hosts on loopback."""

from __future__ import annotations

import pytest
import trio

from tests.dht.donating import identity_of
from tests.dht.kad_lab import (
    KEY,
    OTHER_KEY,
    ids_of,
    open_dht,
)
from tests.peer.hosts import LOOPBACK, closed_port, open_silent_port, wait_until
from tokenplace import defaults
from tokenplace.dht.kad import open_kad
from tokenplace.dht.messages import PeerAddrs
from tokenplace.dht.providers import ProviderStore
from tokenplace.peer.host import open_host
from tokenplace.peer.identity import throwaway_identity


async def test_what_is_withdrawn_is_forgotten_by_all_who_confirmed_it() -> None:
    async with open_dht(4) as dht:
        alice, bob = dht.servers[2:]
        for key in (KEY, OTHER_KEY):
            assert await alice.kad.provide(key) == 3
        await bob.kad.provide(KEY)
        client = await dht.add_client()
        await alice.kad.withdraw([KEY])
        assert ids_of((await client.kad.find_providers(KEY)).providers) == {bob.host.peer_id}
        found = await client.kad.find_providers(OTHER_KEY)
        assert ids_of(found.providers) == {alice.host.peer_id}
        await alice.kad.withdraw([KEY, OTHER_KEY, b"never provided"])
        assert (await client.kad.find_providers(OTHER_KEY)).providers == ()


async def test_withdrawing_from_the_dead_and_silent_takes_no_longer_than_promised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "WITHDRAW_TIMEOUT_S", 0.5)
    async with open_dht(3) as dht, open_silent_port() as silent:
        alice, gone = dht.servers[1:]
        await alice.kad.provide(KEY)
        await gone.leave()
        ghost = PeerAddrs(throwaway_identity().peer_id, (f"/ip4/127.0.0.1/tcp/{silent}",))
        alice.kad._holders[KEY][ghost.peer_id] = ghost
        start = trio.current_time()
        await alice.kad.withdraw([KEY])
        assert trio.current_time() - start < defaults.QUERY_TIMEOUT_S
        client = await dht.add_client()
        assert (await client.kad.find_providers(KEY)).providers == ()


async def test_squatters_neither_keep_a_provider_out_of_a_full_key_nor_hide_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "MAX_PROVIDERS_PER_KEY", 20)
    monkeypatch.setattr(defaults, "PROVIDER_PROBE_PAUSE_S", 0.01)
    async with open_dht(2) as dht:
        server, alice = dht.servers
        nowhere = f"/ip4/127.0.0.1/tcp/{closed_port()}"
        await alice.kad.provide(KEY)
        for number in range(20):  # each from another network, as far as the server can see
            squatter = PeerAddrs(identity_of(f"squatter {number}").peer_id, (nowhere,))
            if number == 19:
                await wait_until(lambda: n_failed(server.kad._store) == 19)
            server.kad._store.add(KEY, squatter, f"20.{number}.0.1", 0.0)
        client = await dht.add_client()
        found = await client.kad.find_providers(KEY)
        assert alice.host.peer_id in ids_of(found.providers)
        bob = await dht.add_server()
        await bob.kad.provide(KEY)
        found = await client.kad.find_providers(KEY)
        assert {alice.host.peer_id, bob.host.peer_id} <= ids_of(found.providers)


def n_failed(store: ProviderStore) -> int:
    return sum(probe.has_failed for probe in store._probes.values())


async def test_providers_are_probed_only_where_strangers_may_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "MAX_PROVIDERS_PER_KEY", 1)
    monkeypatch.setattr(defaults, "PROVIDER_PROBE_PAUSE_S", 0.01)
    async with (
        open_host(throwaway_identity(), listen=[LOOPBACK]) as victim,
        open_host(throwaway_identity(), listen=[LOOPBACK]) as host,
        open_kad(host, network="main", server=True, allow_private=False) as kad,
    ):
        addrs = tuple(addr.split("/p2p/")[0] for addr in victim.addrs())
        kad._store.add(KEY, PeerAddrs(victim.peer_id, addrs), "20.1.0.1", trio.current_time())
        await wait_until(lambda: n_failed(kad._store) == 1)
        assert victim.connections() == []
