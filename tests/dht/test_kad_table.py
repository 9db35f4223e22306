"""Who is in the routing table, who may enter, and who has to leave."""

from __future__ import annotations

import hashlib
from functools import cache

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.dht.donating import identity_of
from tokenplace import defaults
from tokenplace.dht.messages import PeerAddrs
from tokenplace.dht.table import PeerTable

ADDR = "/ip4/203.0.113.7/tcp/4010"
ALICE = identity_of("alice").peer_id
KEY = b"k" * 32


@cache
def peer(name: str) -> PeerAddrs:
    return PeerAddrs(identity_of(name).peer_id, (ADDR,))


def bucket_of(table: PeerTable, one: PeerAddrs) -> int:
    return table._entries[one.peer_id].bucket


@cache
def far_peers(n: int) -> list[PeerAddrs]:
    """Peers whose place has another first bit than ALICE's: one bucket's."""
    table = PeerTable(ALICE)
    found: list[PeerAddrs] = []
    for number in range(20 * n):
        one = peer(f"peer {number}")
        table.add(one, "127.0.0.1")
        if table.has(one.peer_id) and bucket_of(table, one) == 0:
            found.append(one)
            table = PeerTable(ALICE)
        if len(found) == n:
            break
    return found


def public_ip(number: int) -> str:
    """An address in a /16 of its own."""
    return f"{20 + number // 200}.{number % 200}.1.1"


def fail(table: PeerTable, one: PeerAddrs, at: float) -> None:
    table.note_failed(one.peer_id, asked_at=at, now=at + 1)


def test_the_closest_come_first_as_sha256_and_xor_have_it() -> None:
    table = PeerTable(ALICE)
    everybody = [peer(f"peer {number}") for number in range(30)]
    for one in everybody:
        assert table.add(one, "127.0.0.1")

    def distance(one: PeerAddrs) -> int:
        place = hashlib.sha256(_raw(one)).digest()
        return int.from_bytes(place, "big") ^ int.from_bytes(hashlib.sha256(KEY).digest(), "big")

    assert table.closest(KEY, 20) == sorted(everybody, key=distance)[:20]


def _raw(one: PeerAddrs) -> bytes:
    names = {identity_of(f"peer {n}").peer_id: f"peer {n}" for n in range(30)}
    return identity_of(names[one.peer_id]).peer_id_bytes


def test_a_renewed_entry_has_its_new_addresses_and_was_heard_of_last() -> None:
    table = PeerTable(ALICE)
    for name in ("bob", "carol"):
        table.add(peer(name), "127.0.0.1")
    assert table.least_recently_heard(2) == [peer("bob"), peer("carol")]
    moved = PeerAddrs(peer("bob").peer_id, ("/ip4/198.51.100.9/tcp/4010",))
    table.add(moved, "127.0.0.1")
    assert table.least_recently_heard(2) == [peer("carol"), moved]
    table.note_answered(peer("carol").peer_id)
    assert table.least_recently_heard(1) == [moved]


# ---------------------------------------------------------------- failures


def test_one_failure_makes_doubtful_the_second_removes() -> None:
    table = PeerTable(ALICE)
    bob, carol = peer("bob"), peer("carol")
    table.add(bob, "127.0.0.1")
    table.add(carol, "127.0.0.1")
    fail(table, bob, at=10)
    assert table.has(bob.peer_id)
    assert table.doubtful() == [bob]
    assert (table.peers(), table.closest(KEY, 20), len(table)) == ([carol], [carol], 1)
    fail(table, bob, at=20)
    assert not table.has(bob.peer_id)


def test_an_answer_ends_the_doubt() -> None:
    table = PeerTable(ALICE)
    bob = peer("bob")
    table.add(bob, "127.0.0.1")
    for at in (10, 20, 30):
        fail(table, bob, at=at)
        assert table.doubtful() == [bob]
        table.note_answered(bob.peer_id)
        assert table.doubtful() == []


def test_queries_that_failed_together_count_once() -> None:
    table = PeerTable(ALICE)
    bob = peer("bob")
    table.add(bob, "127.0.0.1")
    for now in (13.0, 13.1, 13.2):
        table.note_failed(bob.peer_id, asked_at=10, now=now)
    assert table.doubtful() == [bob]


def test_when_all_are_doubtful_they_are_asked_all_the_same() -> None:
    table = PeerTable(ALICE)
    table.add(peer("bob"), "127.0.0.1")
    fail(table, peer("bob"), at=10)
    assert table.closest(KEY, 20) == [peer("bob")]
    assert len(table) == 0


def test_what_is_said_of_strangers_changes_nothing() -> None:
    table = PeerTable(ALICE)
    table.note_answered(peer("bob").peer_id)
    fail(table, peer("bob"), at=10)
    assert not table.has(peer("bob").peer_id)


# ---------------------------------------------------------------- limits


def test_one_hoster_gets_few_places_in_a_bucket_and_they_are_given_on() -> None:
    table = PeerTable(ALICE)
    one, two, three, elsewhere = far_peers(4)
    assert table.add(one, "20.1.0.1")
    assert table.add(two, "20.1.99.1")
    assert not table.add(three, "20.1.200.200")
    assert table.add(elsewhere, "20.2.0.1")
    assert table.add(one, "20.1.0.1"), "a renewal takes no new place"
    fail(table, two, at=10)
    assert table.add(three, "20.1.200.200")
    assert not table.has(two.peer_id)


def test_addresses_of_one_ipv6_block_and_of_ipv4_inside_ipv6_are_counted_together() -> None:
    table = PeerTable(ALICE)
    peers = far_peers(6)
    for one, ip in zip(peers, ("2a00:1:5::1", "2a00:1:6::1", "2a00:1:7::1"), strict=False):
        table.add(one, ip)
    for one, ip in zip(peers[3:], ("20.1.0.1", "::ffff:20.1.0.2", "20.1.0.3"), strict=True):
        table.add(one, ip)
    held = {one.peer_id for one in table.peers()}
    assert held == {peers[n].peer_id for n in (0, 1, 3, 4)}


@pytest.mark.parametrize("ip", ["127.0.0.1", "10.1.2.3", "192.168.1.1", "::1", "fd00::1"])
def test_loopback_and_private_networks_are_not_counted(ip: str) -> None:
    table = PeerTable(ALICE)
    assert all(table.add(one, ip) for one in far_peers(defaults.BUCKET_PEERS))


def test_one_hosters_share_of_the_whole_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "TABLE_PEERS_PER_NETWORK", 3)
    table = PeerTable(ALICE)
    for number in range(100):
        table.add(peer(f"peer {number}"), f"20.1.{number}.1")
    assert len(table) == 3
    assert table.add(peer("bob"), "20.2.0.1")


def test_in_a_full_bucket_only_the_doubtful_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "BUCKET_PEERS", 3)
    table = PeerTable(ALICE)
    *first, newcomer = far_peers(4)
    for number, one in enumerate(first):
        assert table.add(one, public_ip(number))
    assert not table.add(newcomer, public_ip(10))
    fail(table, first[1], at=10)
    assert table.add(newcomer, public_ip(10))
    assert not table.has(first[1].peer_id)
    assert len(table) == 3


def test_in_a_full_table_only_the_doubtful_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_TABLE_PEERS", 3)
    table = PeerTable(ALICE)
    for number in range(3):
        table.add(peer(f"peer {number}"), public_ip(number))
    assert not table.add(peer("bob"), public_ip(10))
    fail(table, peer("peer 0"), at=10)
    assert table.add(peer("bob"), public_ip(10))
    assert not table.has(peer("peer 0").peer_id)


def test_who_gets_no_place_drives_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "BUCKET_PEERS", 3)
    table = PeerTable(ALICE)
    one, two, three, newcomer = far_peers(4)
    table.add(one, "20.1.0.1")
    table.add(two, "20.1.0.2")
    table.add(three, public_ip(5))
    fail(table, three, at=10)
    assert not table.add(newcomer, "20.1.0.3"), "its network's places are held by the living"
    assert table.has(three.peer_id)


class TableMachine(RuleBasedStateMachine):
    """Whatever happens, no share is exceeded, and who answered last is known."""

    def __init__(self) -> None:
        super().__init__()
        self.table = PeerTable(ALICE)
        self.now = 0.0

    @rule(number=st.integers(0, 60), network=st.integers(0, 4), is_public=st.booleans())
    def answer(self, number: int, network: int, is_public: bool) -> None:
        one = peer(f"peer {number}")
        ip = f"20.{network}.{number}.1" if is_public else "192.168.1.1"
        assert self.table.add(one, ip) == self.table.has(one.peer_id)

    @rule(number=st.integers(0, 60))
    def fail(self, number: int) -> None:
        self.now += 10
        fail(self.table, peer(f"peer {number}"), at=self.now)

    @rule(number=st.integers(0, 60))
    def answer_something(self, number: int) -> None:
        self.table.note_answered(peer(f"peer {number}").peer_id)

    @invariant()
    def no_share_is_exceeded(self) -> None:
        entries = list(self.table._entries.values())
        for entry in entries:
            bucket = [other for other in entries if other.bucket == entry.bucket]
            assert len(bucket) <= defaults.BUCKET_PEERS
            if entry.network is not None:
                alike = [other for other in bucket if other.network == entry.network]
                assert len(alike) <= defaults.BUCKET_PEERS_PER_NETWORK
            assert entry.n_failures < defaults.MAX_QUERY_FAILURES
        assert len(self.table) + len(self.table.doubtful()) == len(entries)


TestTable = TableMachine.TestCase
