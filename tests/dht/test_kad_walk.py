"""The walk over a made-up network, on virtual time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pytest
import trio
from libp2p.peer.id import ID
from trio.testing import MockClock

from tokenplace import defaults
from tokenplace.dht.messages import PeerAddrs
from tokenplace.dht.walk import walk

KEY = b"k" * 32
ME = ID(b"me").to_base58()
SLOW_S = 2.0


def peer(number: int) -> PeerAddrs:
    return PeerAddrs(ID(b"peer %d" % number).to_base58(), (f"/ip4/203.0.113.7/tcp/{number + 1}",))


def distance(one: PeerAddrs) -> int:
    hashed = hashlib.sha256(ID.from_base58(one.peer_id).to_bytes()).digest()
    return int.from_bytes(hashed, "big") ^ int.from_bytes(hashlib.sha256(KEY).digest(), "big")


class Network:
    """`n_peers` peers, each knowing 10 near itself and 10 half as far from the key."""

    def __init__(
        self,
        n_peers: int,
        *,
        silent: Iterable[int] = (),
        slow: Iterable[int] = (),
        delay_s: float = 0.05,
    ) -> None:
        """silent, slow: ranks by distance; slow ones answer after `SLOW_S`."""
        self.by_distance = sorted((peer(number) for number in range(n_peers)), key=distance)
        self.silent = self.ids(silent)
        self.slow = self.ids(slow)
        self.delay_s = delay_s
        self.asked: list[PeerAddrs] = []
        self.n_in_flight = 0
        self.max_in_flight = 0

    def ids(self, ranks: Iterable[int]) -> set[str]:
        return {self.by_distance[rank].peer_id for rank in ranks}

    def ids_asked(self) -> set[str]:
        return {one.peer_id for one in self.asked}

    async def ask(self, one: PeerAddrs) -> list[PeerAddrs] | None:
        self.asked.append(one)
        self.n_in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.n_in_flight)
        try:
            if one.peer_id in self.silent:
                await trio.sleep(defaults.QUERY_TIMEOUT_S)
                return None
            await trio.sleep(SLOW_S if one.peer_id in self.slow else self.delay_s)
        finally:
            self.n_in_flight -= 1
        rank = [known.peer_id for known in self.by_distance].index(one.peer_id)
        half, around = max(0, rank // 2 - 5), max(0, rank - 5)
        return [
            PeerAddrs(ME, ()),
            *self.by_distance[half : half + 10],
            *self.by_distance[around : around + 10],
        ]


async def test_the_walk_ends_with_the_closest(autojump_clock: MockClock) -> None:
    network = Network(500)
    result = await walk(KEY, network.by_distance[-3:], network.ask, me=ME, deadline_s=10)
    assert result.complete
    assert [found.peer_id for found in result.closest] == [
        closest.peer_id for closest in network.by_distance[: defaults.K]
    ]
    assert len(network.asked) < 100
    assert ME not in {one.peer_id for one in network.asked}
    assert len(network.asked) == len({one.peer_id for one in network.asked}), (
        "nobody is asked twice"
    )
    assert network.max_in_flight <= defaults.ALPHA


async def test_silent_peers_are_passed_by(autojump_clock: MockClock) -> None:
    network = Network(200, silent=range(0, 40, 2))
    result = await walk(KEY, network.by_distance[-3:], network.ask, me=ME, deadline_s=60)
    assert result.complete
    expected = [one for one in network.by_distance if one.peer_id not in network.silent]
    assert [one.peer_id for one in result.closest] == [
        one.peer_id for one in expected[: defaults.K]
    ]


async def test_a_silent_peer_holds_up_nobody_else(autojump_clock: MockClock) -> None:
    network = Network(30, silent=range(8))
    start = trio.current_time()
    result = await walk(KEY, network.by_distance, network.ask, me=ME, deadline_s=60)
    # Six at once wait for eight in two rounds; the others answer at their pace.
    assert trio.current_time() - start == pytest.approx(2 * defaults.PATIENCE_S, abs=0.3)
    assert result.complete
    assert len(result.closest) == defaults.K


async def test_a_slow_peer_is_waited_for_while_there_are_few(autojump_clock: MockClock) -> None:
    network = Network(5, slow=[0])
    result = await walk(KEY, network.by_distance, network.ask, me=ME, deadline_s=60)
    assert result.complete
    assert result.closest == tuple(network.by_distance)


async def test_where_everybody_is_slow_nobody_is_passed_over_for_it(
    autojump_clock: MockClock,
) -> None:
    network = Network(200, slow=range(200))
    result = await walk(KEY, network.by_distance[-3:], network.ask, me=ME, deadline_s=60)
    assert result.complete
    assert result.closest == tuple(network.by_distance[: defaults.K])
    assert network.max_in_flight <= defaults.ALPHA


async def test_silent_peers_without_end_are_not_all_asked_at_once(
    autojump_clock: MockClock,
) -> None:
    network = Network(200, silent=range(200))
    await walk(KEY, network.by_distance, network.ask, me=ME, deadline_s=10)
    assert defaults.ALPHA < network.max_in_flight <= defaults.MAX_WALK_QUERIES


async def test_who_did_not_answer_lately_is_not_asked_while_there_are_others(
    autojump_clock: MockClock,
) -> None:
    network = Network(60, silent=range(3))
    start = trio.current_time()
    result = await walk(
        KEY,
        network.by_distance,
        network.ask,
        me=ME,
        deadline_s=60,
        is_doubtful=network.silent.__contains__,
    )
    assert result.complete
    assert result.closest == tuple(network.by_distance[3 : 3 + defaults.K])
    assert not network.silent & network.ids_asked()
    assert trio.current_time() - start < defaults.PATIENCE_S


async def test_who_did_not_answer_lately_is_asked_when_nobody_else_is_left(
    autojump_clock: MockClock,
) -> None:
    network = Network(2 + 2 * defaults.ALPHA)
    is_doubtful = network.ids([0, 1]).__contains__
    result = await walk(
        KEY, network.by_distance, network.ask, me=ME, deadline_s=60, is_doubtful=is_doubtful
    )
    assert result.closest == tuple(network.by_distance)
    assert {one.peer_id for one in network.asked[-2:]} == network.ids([0, 1])


async def test_of_the_closest_those_connected_are_asked_first(autojump_clock: MockClock) -> None:
    network = Network(100)
    connected = network.ids([7, 12, 19, 20, 50])
    await walk(
        KEY,
        network.by_distance,
        network.ask,
        me=ME,
        deadline_s=60,
        is_near=connected.__contains__,
    )
    first = {one.peer_id for one in network.asked[: defaults.ALPHA]}
    assert first == network.ids([7, 12, 19, 0, 1, 2])


async def test_a_satisfied_walk_ends_when_enough_of_the_closest_have_answered(
    autojump_clock: MockClock,
) -> None:
    network = Network(500, silent=[1, 3])
    start = trio.current_time()
    result = await walk(
        KEY, network.by_distance[-3:], network.ask, me=ME, deadline_s=60, is_satisfied=lambda: True
    )
    assert not result.complete
    answered = network.ids(range(defaults.K)) & {one.peer_id for one in result.closest}
    assert len(answered) >= defaults.ENOUGH_ANSWERS, "not just any that came first"
    assert trio.current_time() - start < defaults.PATIENCE_S, "nobody waited for the silent ones"


async def test_a_satisfied_walk_waits_for_no_slow_peer_among_few(autojump_clock: MockClock) -> None:
    network = Network(4, silent=[0])
    start = trio.current_time()
    result = await walk(
        KEY, network.by_distance, network.ask, me=ME, deadline_s=60, is_satisfied=lambda: True
    )
    assert result.closest == tuple(network.by_distance[1:])
    assert not result.complete
    assert trio.current_time() - start == pytest.approx(defaults.PATIENCE_S, abs=0.1)


async def test_the_deadline_is_kept_and_told(autojump_clock: MockClock) -> None:
    network = Network(200, delay_s=2.0)
    start = trio.current_time()
    result = await walk(KEY, network.by_distance[-3:], network.ask, me=ME, deadline_s=5)
    assert trio.current_time() - start == 5
    assert not result.complete
    assert result.closest, "who answered in time is named"


async def test_nobody_to_ask_is_no_complete_walk(autojump_clock: MockClock) -> None:
    network = Network(5, silent=range(5))
    assert not (await walk(KEY, [], network.ask, me=ME, deadline_s=5)).complete
    result = await walk(KEY, network.by_distance, network.ask, me=ME, deadline_s=5)
    assert not result.complete
    assert result.closest == ()


async def test_addresses_heard_from_several_are_gathered(autojump_clock: MockClock) -> None:
    alice, bob = peer(1), peer(2)
    moved = PeerAddrs(bob.peer_id, ("/ip4/198.51.100.9/tcp/1",))
    asked: dict[str, tuple[str, ...]] = {}

    async def ask(one: PeerAddrs) -> list[PeerAddrs] | None:
        asked[one.peer_id] = one.addrs
        return [bob, moved]

    result = await walk(KEY, [alice], ask, me=ME, deadline_s=5)
    assert asked[bob.peer_id] == (*bob.addrs, *moved.addrs)
    assert result.complete
