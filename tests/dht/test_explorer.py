"""How newcomers become known, and who left: fake hosts, virtual time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.dht.finder_lab import Network, open_finder_in
from tokenplace import defaults
from tokenplace.dht.finder import Finder


@pytest.fixture
def network() -> Network:
    return Network()


def ids_known(finder: Finder) -> set[str]:
    return {record.peer_id for record in finder.known()}


async def settle() -> None:
    """Until nobody looks around but once in a minute."""
    await trio.sleep(300)


async def test_who_announces_itself_here_is_known_at_once(
    network: Network, autojump_clock: MockClock
) -> None:
    async with open_finder_in(network) as finder:
        await settle()
        alice = network.add("alice")
        for _ in range(33):  # one record a key
            network.provided(alice)
        await trio.sleep(0.1)
        assert ids_known(finder) == {alice}
        assert len(network.asked) == 1


async def test_silent_announcers_hold_up_nobody_else(
    network: Network, autojump_clock: MockClock
) -> None:
    async with open_finder_in(network) as finder:
        await settle()
        squatters = [network.add(f"squatter {n}") for n in range(1000)]
        network.silent = set(squatters)
        for squatter in squatters:
            network.provided(squatter)
        network.in_dht = [alice := network.add("alice")]
        await trio.sleep(2 * defaults.EXPLORE_S)
        assert ids_known(finder) == {alice}
    assert network.n_asked_since(0) < 2 * defaults.MAX_HINTS
    assert network.most_open <= defaults.HINT_FETCHES + defaults.BACKGROUND_FETCHES


async def test_while_few_donors_are_known_a_newcomer_is_known_soon(
    network: Network, autojump_clock: MockClock
) -> None:
    network.bootstrap = [bootstrap := network.add("bootstrap")]
    network.donors[bootstrap].models = []
    async with open_finder_in(network) as finder:
        await settle()
        network.told_by[bootstrap] = [alice := network.add("alice")]
        await trio.sleep(2 * defaults.LOOK_S)
        assert ids_known(finder) == {alice}
        network.told_by[bootstrap] += [network.add(f"donor {n}") for n in range(9)]
        await trio.sleep(2 * defaults.LOOK_S)
        assert len(finder.known()) == 10
        await settle()
        start, n_before = trio.current_time(), len(network.asked)
        await trio.sleep(600)
        to_bootstrap = [at for at, peer in network.asked if peer == bootstrap and at >= start]
        assert len(to_bootstrap) <= 2 * (600 / (defaults.EXPLORE_S / 2)), "many are known: no haste"
        assert len(network.asked) > n_before


async def test_who_was_connected_to_is_asked_and_who_only_called_is_not(
    network: Network, autojump_clock: MockClock
) -> None:
    async with open_finder_in(network) as finder:
        await settle()
        alice, bob = network.add("alice"), network.add("bob")
        network.told_by[alice] = [bob]
        network.connect(alice)
        network.connect(asker := network.add("asker"), direction="in")
        await trio.sleep(2 * defaults.CONNECTIONS_CHECK_S)
        assert ids_known(finder) == {alice, bob}
        assert asker not in {peer for _, peer in network.asked}


async def test_a_donor_whose_connection_is_gone_is_asked_whether_it_lives(
    network: Network, autojump_clock: MockClock
) -> None:
    network.in_dht = [network.add("alice"), network.add("bob")]
    for donor in network.in_dht:
        network.connect(donor)
    async with open_finder_in(network) as finder:
        await settle()
        alice, bob = network.in_dht
        network.dead.add(alice)
        network.connected.clear()
        await trio.sleep(2 * defaults.CONNECTIONS_CHECK_S)
        assert ids_known(finder) == {bob}
