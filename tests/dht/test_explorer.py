"""How newcomers become known, and who left: fake hosts, virtual time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.dht.finder_lab import Network, find, now, open_finder_in
from tokenplace import defaults
from tokenplace.dht.directory import Directory
from tokenplace.dht.directory_wire import Op, Query
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


def connect_two(network: Network) -> tuple[str, str]:
    """Two donors that announce and are connected to this peer."""
    alice, bob = network.add("alice"), network.add("bob")
    network.in_dht = [alice, bob]
    network.connect(alice)
    network.connect(bob)
    return alice, bob


async def test_a_donor_whose_connection_is_gone_is_asked_whether_it_lives(
    network: Network, autojump_clock: MockClock
) -> None:
    alice, bob = connect_two(network)
    async with open_finder_in(network) as finder:
        await settle()
        network.dead.add(alice)
        network.connected.clear()
        await trio.sleep(2 * defaults.CONNECTIONS_CHECK_S)
        assert ids_known(finder) == {bob}


async def test_a_donor_that_comes_and_goes_between_two_looks_is_asked_whether_it_lives(
    network: Network, autojump_clock: MockClock
) -> None:
    """It was killed just after it was found: no look at the connections has shown one to it."""
    async with open_finder_in(network) as finder:
        await settle()
        network.in_dht = [alice := network.add("alice")]
        assert (await find(finder)).donors
        network.dead.add(alice)
        await trio.sleep(2 * defaults.CONNECTIONS_CHECK_S)
        assert finder.known() == []


async def fall_silent(network: Network, *silent: str) -> None:
    """Say nothing for as long as a connection lives without, and be hung up on."""
    others = {info.peer_id for info in network.connected} - set(silent)
    network.connected.clear()
    for other in others:
        network.connect(other)
    for one in silent:
        network.connect(one, silent_s=10.5)
    await trio.sleep(2 * defaults.CONNECTIONS_CHECK_S)
    network.connected = [info for info in network.connected if info.peer_id not in silent]
    await trio.sleep(2 * defaults.CONNECTIONS_CHECK_S)


async def test_who_falls_silent_while_others_speak_is_given_up_before_it_could_answer(
    network: Network, autojump_clock: MockClock
) -> None:
    alice, bob = connect_two(network)
    async with open_finder_in(network) as finder:
        await settle()
        network.silent.add(alice)
        await fall_silent(network, alice)  # in less time than a question is given
        assert ids_known(finder) == {bob}
        network.silent.clear()
        await trio.sleep(2 * defaults.DONOR_RETRY_S)
        assert ids_known(finder) == {alice, bob}, "it is asked again, and lives"


async def test_when_all_fall_silent_this_peer_may_be_the_one_that_is_away(
    network: Network, autojump_clock: MockClock
) -> None:
    alice, bob = connect_two(network)
    async with open_finder_in(network) as finder:
        await settle()
        start = trio.current_time()
        await fall_silent(network, alice, bob)
        assert ids_known(finder) == {alice, bob}, "they were asked, and live"
        assert {peer for at, peer in network.asked if at >= start} >= {alice, bob}


async def test_who_is_hung_up_on_while_idle_does_not_come_back_for_ever(
    network: Network, autojump_clock: MockClock
) -> None:
    network.in_dht = [alice := network.add("alice")]
    async with open_finder_in(network) as finder:
        await settle()
        network.in_dht = []
        start = trio.current_time()
        for _ in range(20):  # its places are all taken: whoever comes pushes somebody out
            network.connect(alice, direction="in")
            await trio.sleep(2 * defaults.CONNECTIONS_CHECK_S)
            network.connected.clear()
            await trio.sleep(2 * defaults.CONNECTIONS_CHECK_S)
        took_s = trio.current_time() - start
        n_asked = network.n_asked_since(start)
        assert 0 < n_asked <= took_s / defaults.LOST_AGAIN_S + took_s / defaults.LOOK_S / 4 + 2
        assert ids_known(finder) == {alice}


async def test_a_donor_that_died_is_gone_from_everywhere_in_bounded_time(
    network: Network, autojump_clock: MockClock
) -> None:
    """Nobody tells: there was no connection, and nobody asks for its model."""
    network.in_dht = [alice := network.add("alice")]
    async with open_finder_in(network) as finder:
        await settle()
        directory = Directory(finder._cache, "me", lambda: None, now)
        alice_id = network.donors[alice].identity.peer_id_bytes
        queries = (Query(Op.SAMPLE), Query(Op.PEER, alice_id))
        assert [len(directory.entries(query)) for query in queries] == [1, 1]
        network.dead.add(alice)
        network.in_dht = []
        await trio.sleep(defaults.REFRESH_IDLE_S + 2 * defaults.REFRESH_CHECK_S)
        assert finder.known() == []
        assert [status.is_failed for status in finder.status()] == [True]
        assert directory.entries(queries[0]) == []
        await trio.sleep(defaults.OFFER_LIFETIME_S + defaults.CLOCK_SKEW_S)
        assert finder.status() == []
        assert directory.entries(queries[1]) == []
