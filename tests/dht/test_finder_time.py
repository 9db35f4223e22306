"""What the finder does over minutes, and how much at once: fake hosts, virtual time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from tests.dht.donating import OTHER_MODEL, TINY_MODEL
from tests.dht.finder_lab import Network, find, now, open_finder_in
from tokenplace import defaults
from tokenplace.dht.finder import FindResult
from tokenplace.dht.messages import PeerAddrs
from tokenplace.dht.scouting import spread
from tokenplace.dht.turns import Turns
from tokenplace.models.names import NamedModel


@pytest.fixture
def network() -> Network:
    return Network()


async def test_while_a_model_is_asked_for_its_donors_load_stays_fresh(
    network: Network, autojump_clock: MockClock
) -> None:
    network.in_dht = [network.add("alice"), network.add("bob")]
    async with open_finder_in(network) as finder:
        await find(finder)
        await trio.sleep(1)
        for _ in range(int(defaults.ASKED_FOR_S) - 2):
            await trio.sleep(1)
            assert all(record.load(now()) for record in finder.known())
            assert len(finder.known()) == 2
        # Afterwards only so often that the epoch does not run out.
        await trio.sleep(30)
        start = trio.current_time()
        await trio.sleep(20 * 60)
        # Two donors: refreshed idly, and met by looking for new donors, 15 to 40 times 1 minute.
        assert network.n_asked_since(start) <= 2 * (20 * 60 / (defaults.EXPLORE_S / 2))
        assert all(
            now() - (record.live_received_at or 0) < defaults.EPOCH_S * defaults.EPOCHS_KEPT
            for record in finder.known()
        )


async def test_a_failed_donor_is_known_again_once_it_is_back(
    network: Network, autojump_clock: MockClock
) -> None:
    alice = network.add("alice")
    network.in_dht = [alice]
    async with open_finder_in(network) as finder:
        assert (await find(finder)).donors
        network.dead.add(alice)
        finder.mark_failed(alice)
        assert (await find(finder)).donors == ()
        await trio.sleep(100)
        assert finder.known() == []
        network.dead.clear()
        await trio.sleep(defaults.EXPLORE_S * 1.5 + 1)
        assert [record.peer_id for record in finder.known()] == [alice]


async def test_a_search_that_began_during_an_outage_is_not_the_last_word(
    network: Network, autojump_clock: MockClock
) -> None:
    alice = network.add("alice")
    network.in_dht = [alice]
    async with open_finder_in(network) as finder:
        assert (await find(finder)).donors
        network.silent.add(alice)
        finder.mark_failed(alice)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(find, finder)
            await trio.sleep(defaults.DIRECTORY_ASK_TIMEOUT_S / 2)  # its question is under way
            assert finder.known() == []
            network.silent.clear()
            (record,) = (await find(finder)).donors
        assert record.peer_id == alice


async def test_a_donor_not_heard_of_lately_is_asked_first(
    network: Network, autojump_clock: MockClock
) -> None:
    alice, bob = network.add("alice"), network.add("bob")
    network.in_dht = [alice, bob]
    async with open_finder_in(network) as finder:
        await find(finder)
        await trio.sleep(1)
        network.in_dht = []  # nobody tells the finder any more
        await trio.sleep(defaults.ASKED_FOR_S + defaults.REFRESH_ASKED_S + 30)
        assert not any(record.load(now()) for record in finder.known())
        network.dead.add(alice)
        network.silent.add(bob)
        start = trio.current_time()
        result = await find(finder)
        assert trio.current_time() - start <= defaults.PROBE_S
        assert [record.peer_id for record in result.donors] == [bob]  # silent is not yet dead
        await trio.sleep(defaults.DIRECTORY_ASK_TIMEOUT_S)
        assert finder.known() == []


async def test_a_known_fresh_donor_costs_no_wait_and_no_question(
    network: Network, autojump_clock: MockClock
) -> None:
    network.bootstrap = [network.add("alice")]
    async with open_finder_in(network) as finder:
        await find(finder)
        await trio.sleep(1)
        start, n_asked = trio.current_time(), len(network.asked)
        for _ in range(100):
            assert len((await find(finder)).donors) == 1
        assert (trio.current_time(), len(network.asked)) == (start, n_asked)


async def test_it_is_only_certain_that_nobody_offers_it_when_a_directory_answered(
    network: Network, autojump_clock: MockClock
) -> None:
    network.bootstrap = [network.add("alice")]
    network.donors[network.bootstrap[0]].models = [OTHER_MODEL]
    async with open_finder_in(network) as finder:
        assert await find(finder) == FindResult((), complete=True)
    network.silent.add(network.bootstrap[0])
    async with open_finder_in(network) as finder:
        assert await find(finder) == FindResult((), complete=False)


async def test_a_walk_cut_short_by_a_dead_donor_is_walked_to_its_end(
    network: Network, autojump_clock: MockClock
) -> None:
    network.bootstrap = [network.add("alice")]
    network.donors[network.bootstrap[0]].models = []
    network.in_dht = [network.add("bob")]
    network.dead.add(network.in_dht[0])
    network.is_cut_short = True
    async with open_finder_in(network) as finder:
        assert await find(finder) == FindResult((), complete=True)


async def test_however_many_search_among_however_many_silent_peers_the_effort_is_bounded(
    network: Network, autojump_clock: MockClock
) -> None:
    network.in_dht = [network.add(f"donor {n}") for n in range(60)]
    network.bootstrap = network.in_dht[:30]
    network.silent = set(network.in_dht)
    async with open_finder_in(network) as finder:
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for n in range(3 * defaults.MAX_SEARCHES):
                nursery.start_soon(finder.find, [NamedModel(f"model-{n}")])
        assert trio.current_time() - start <= defaults.FIND_TIMEOUT_S
    assert network.most_open <= defaults.FOREGROUND_FETCHES + defaults.BACKGROUND_FETCHES
    assert network.most_open_to_one <= defaults.ASKED_AT_ONCE


async def test_more_names_than_can_be_searched_one_by_one_are_found_among_all_donors(
    network: Network, autojump_clock: MockClock
) -> None:
    network.in_dht = [network.add("alice")]
    async with open_finder_in(network) as finder:
        models = [NamedModel(f"model-{n}", OTHER_MODEL.artifact) for n in range(49)]
        result = await finder.find([*models, NamedModel("model-49", TINY_MODEL.artifact)])
        assert [record.peer_id for record in result.donors] == network.in_dht


# ---------------------------------------------------------------- squatters and other templates


async def test_squatters_of_one_hoster_do_not_hide_the_honest_donor(
    network: Network, autojump_clock: MockClock
) -> None:
    """The nearest server is theirs, names 60 of them, and they never answer."""
    network.in_dht = [network.add(f"squatter {n}") for n in range(60)]
    network.silent = set(network.in_dht)
    for number, squatter in enumerate(network.in_dht):
        network.donors[squatter].addrs = [f"/ip4/20.1.0.{number}/tcp/4010"]
    network.at_the_end = [alice := network.add("alice")]
    network.donors[alice].addrs = ["/ip4/1.1.1.1/tcp/4010"]
    network.is_cut_short = True
    async with open_finder_in(network) as finder:
        result = await find(finder)
        assert [record.peer_id for record in result.donors] == [alice]
        assert trio.current_time() < defaults.FIND_TIMEOUT_S


def test_of_many_networks_one_peer_each_comes_first() -> None:
    def peer(name: str, ip: str) -> PeerAddrs:
        return PeerAddrs(name, (f"/ip{6 if ':' in ip else 4}/{ip}/tcp/4010",))

    crowd = [peer(f"crowd {n}", f"20.1.{n}.1") for n in range(3)]
    others = [peer("alice", "1.1.1.1"), peer("bob", "2a00:1::1"), PeerAddrs("carol", ())]
    assert spread([*crowd, *others]) == [crowd[0], *others, *crowd[1:]]


async def test_a_donor_with_another_template_does_not_end_the_search(
    network: Network, autojump_clock: MockClock
) -> None:
    wanted = replace(TINY_MODEL, template="a" * 64)
    network.bootstrap, network.in_dht = [network.add("alice")], [bob := network.add("bob")]
    network.donors[network.bootstrap[0]].models = [replace(wanted, template="b" * 64)]
    network.donors[bob].models = [wanted]
    async with open_finder_in(network) as finder:
        model = NamedModel(wanted.name, wanted.artifact, wanted.template)
        result = await finder.find([model])
        assert [record.peer_id for record in result.donors] == [bob]


async def test_turns_are_given_to_each_peer_apart_and_leave_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    turns = Turns(2)
    n_held: Counter[str] = Counter()

    async def hold(peer_id: str) -> None:
        async with turns.turn(peer_id):
            n_held[peer_id] += 1
            assert n_held[peer_id] <= 2
            await trio.sleep(1)
            n_held[peer_id] -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(hold, "ALICE")
        nursery.start_soon(hold, "BOB")
    assert trio.current_time() == 3
    assert not turns._limiters
