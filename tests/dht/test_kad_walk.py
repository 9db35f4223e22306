"""The walk over a made-up network, on virtual time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import trio
from libp2p.peer.id import ID
from trio.testing import MockClock

from tokenplace import defaults
from tokenplace.dht.messages import PeerAddrs
from tokenplace.dht.walk import walk

KEY = b"k" * 32
ME = ID(b"me").to_base58()


def peer(number: int) -> PeerAddrs:
    return PeerAddrs(ID(b"peer %d" % number).to_base58(), (f"/ip4/203.0.113.7/tcp/{number + 1}",))


def distance(one: PeerAddrs) -> int:
    hashed = hashlib.sha256(ID.from_base58(one.peer_id).to_bytes()).digest()
    return int.from_bytes(hashed, "big") ^ int.from_bytes(hashlib.sha256(KEY).digest(), "big")


class Network:
    """`n_peers` peers, each knowing 10 near itself and 10 half as far from the key."""

    def __init__(self, n_peers: int, *, silent: Iterable[int] = (), delay_s: float = 0.05) -> None:
        self.by_distance = sorted((peer(number) for number in range(n_peers)), key=distance)
        self.silent = {self.by_distance[rank].peer_id for rank in silent}
        self.delay_s = delay_s
        self.asked: list[PeerAddrs] = []
        self.n_in_flight = 0
        self.max_in_flight = 0

    async def ask(self, one: PeerAddrs) -> list[PeerAddrs] | None:
        self.asked.append(one)
        self.n_in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.n_in_flight)
        try:
            if one.peer_id in self.silent:
                await trio.sleep(defaults.QUERY_TIMEOUT_S)
                return None
            await trio.sleep(self.delay_s)
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
    network = Network(30, silent=[0])
    start = trio.current_time()
    await walk(KEY, network.by_distance, network.ask, me=ME, deadline_s=60)
    assert trio.current_time() - start < defaults.QUERY_TIMEOUT_S + 1


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
