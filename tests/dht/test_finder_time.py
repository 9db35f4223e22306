"""What the finder does over minutes, and how much at once: fake hosts, virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.dht.donating import NETWORK, NOW, OTHER_MODEL, TINY_MODEL, Donor, identity_of
from tests.peer.memory import stream_pair
from tokenplace import defaults
from tokenplace.dht.directory import Directory
from tokenplace.dht.donors import DirectoryCache
from tokenplace.dht.finder import Finder, FindResult, open_finder
from tokenplace.dht.kad import ProviderSearch
from tokenplace.dht.messages import PeerAddrs
from tokenplace.dht.turns import Turns
from tokenplace.errors import ConnectFailed
from tokenplace.peer.streams import PeerStream


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
    n_open: Counter[str] = field(default_factory=Counter)
    most_open: int = 0
    most_open_to_one: int = 0
    nursery: trio.Nursery | None = None

    def add(self, name: str) -> str:
        donor = Donor(identity_of(name))
        self.donors[donor.identity.peer_id] = donor
        return donor.identity.peer_id

    def n_asked_since(self, time: float) -> int:
        return sum(at >= time for at, _ in self.asked)

    # as a host
    def connections(self) -> list[Any]:
        return []

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
            with trio.move_on_after(defaults.DIRECTORY_ASK_TIMEOUT_S):
                await trio.sleep_forever()
        else:
            donor = self.donors[peer_id]
            donor.now = now()
            cache = DirectoryCache(NETWORK, allow_private=False)
            await Directory(cache, peer_id, donor.announcer().own, now).handle(stream)
        self.n_open[peer_id] -= 1

    # as a DHT
    def n_peers(self) -> int:
        return 1

    async def find_providers(self, key: bytes, *, soft_s: float) -> ProviderSearch:
        await trio.sleep(0.1)
        is_whole = soft_s > defaults.WALK_SOFT_S or not self.is_cut_short
        providers = tuple(PeerAddrs(peer, ()) for peer in self.in_dht)
        return ProviderSearch(providers, complete=is_whole)

    # as a joiner
    @property
    def peers(self) -> tuple[PeerAddrs, ...]:
        return tuple(PeerAddrs(peer, ()) for peer in self.bootstrap)

    async def wait_joined(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.fixture
def network() -> Network:
    return Network()


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
    return await finder.find([TINY_MODEL.name], [TINY_MODEL.artifact])


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
                nursery.start_soon(finder.find, [f"model-{n}"])
        assert trio.current_time() - start <= defaults.FIND_TIMEOUT_S
    assert network.most_open <= defaults.FOREGROUND_FETCHES + defaults.BACKGROUND_FETCHES
    assert network.most_open_to_one <= defaults.ASKED_AT_ONCE


async def test_more_names_than_can_be_searched_one_by_one_are_found_among_all_donors(
    network: Network, autojump_clock: MockClock
) -> None:
    network.in_dht = [network.add("alice")]
    async with open_finder_in(network) as finder:
        names = [f"model-{n}" for n in range(50)]
        artifacts = [OTHER_MODEL.artifact] * 49 + [TINY_MODEL.artifact]
        result = await finder.find(names, artifacts)
        assert [record.peer_id for record in result.donors] == network.in_dht


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
