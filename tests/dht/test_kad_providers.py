from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tokenplace import defaults
from tokenplace.dht.messages import PeerAddrs
from tokenplace.dht.providers import ProviderStore, network_of

KEY = b"k" * 32
HOME = ("/ip4/203.0.113.7/tcp/4010",)
MOVED = ("/ip4/198.51.100.9/tcp/4010",)
IP = "203.0.113.7"


def test_a_record_lives_as_long_as_promised() -> None:
    store = ProviderStore()
    assert store.add(KEY, PeerAddrs("ALICE", HOME), IP, now=100.0)
    assert store.get(KEY, 100.0 + defaults.PROVIDER_TTL_S - 1) == [PeerAddrs("ALICE", HOME)]
    assert store.get(KEY, 100.0 + defaults.PROVIDER_TTL_S) == []
    store.drop_expired(100.0 + defaults.PROVIDER_TTL_S)
    assert store.n_records == 0


def test_a_provider_that_moved_is_known_at_its_new_address_only() -> None:
    store = ProviderStore()
    store.add(KEY, PeerAddrs("ALICE", HOME), IP, now=0.0)
    store.add(KEY, PeerAddrs("ALICE", MOVED), IP, now=1.0)
    assert store.get(KEY, 2.0) == [PeerAddrs("ALICE", MOVED)]
    assert store.n_records == 1


def test_a_full_key_makes_room_in_its_most_crowded_network() -> None:
    store = ProviderStore()
    store.add(KEY, PeerAddrs("ALICE", HOME), "203.0.113.7", now=0.0)
    for number in range(defaults.MAX_PROVIDERS_PER_KEY - 1):
        store.add(KEY, PeerAddrs(f"sybil {number}", HOME), f"198.51.{number}.1", now=1.0 + number)
    assert store.add(KEY, PeerAddrs("BOB", HOME), "192.0.2.1", now=500.0)
    known = {provider.peer_id for provider in store.get(KEY, 500.0)}
    assert len(known) == defaults.MAX_PROVIDERS_PER_KEY
    assert {"ALICE", "BOB"} <= known
    assert "sybil 0" not in known
    assert store.add(KEY, PeerAddrs("another sybil", HOME), "198.51.200.1", now=501.0)
    known = {provider.peer_id for provider in store.get(KEY, 501.0)}
    assert {"ALICE", "BOB", "another sybil"} <= known


def test_one_provider_cannot_fill_the_store() -> None:
    store = ProviderStore()
    keys = [bytes([n % 256, n // 256]) for n in range(defaults.MAX_KEYS_PER_PROVIDER + 1)]
    stored = [store.add(key, PeerAddrs("ALICE", HOME), IP, now=0.0) for key in keys]
    assert stored == [True] * defaults.MAX_KEYS_PER_PROVIDER + [False]
    assert store.add(keys[0], PeerAddrs("ALICE", MOVED), IP, now=1.0), "a renewal is no new record"


def test_the_store_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_PROVIDER_RECORDS", 2)
    store = ProviderStore()
    stored = [store.add(KEY, PeerAddrs(name, HOME), IP, now=0.0) for name in ("a", "b", "c")]
    assert stored == [True, True, False]


@pytest.mark.parametrize(
    ("ip", "network"),
    [("203.0.113.7", "203.0.0.0/16"), ("2001:db8:1:2::3", "2001:db8::/32")],
)
def test_networks(ip: str, network: str) -> None:
    assert network_of(ip) == network


class StoreMachine(RuleBasedStateMachine):
    """Against a plain dictionary of what is alive, while nothing is full."""

    def __init__(self) -> None:
        super().__init__()
        self.store = ProviderStore()
        self.alive: dict[tuple[bytes, str], tuple[tuple[str, ...], float]] = {}
        self.now = 0.0

    @rule(key=st.sampled_from([b"a", b"b"]), name=st.sampled_from("xyz"), port=st.integers(1, 3))
    def add(self, key: bytes, name: str, port: int) -> None:
        addrs = (f"/ip4/203.0.113.7/tcp/{port}",)
        assert self.store.add(key, PeerAddrs(name, addrs), IP, self.now)
        self.alive[key, name] = (addrs, self.now + defaults.PROVIDER_TTL_S)

    @rule(key=st.sampled_from([b"a", b"b"]), name=st.sampled_from("xyz"))
    def remove(self, key: bytes, name: str) -> None:
        self.store.remove(key, name)
        self.alive.pop((key, name), None)

    @rule(seconds=st.floats(0, defaults.PROVIDER_TTL_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.alive = {entry: value for entry, value in self.alive.items() if value[1] > self.now}

    @rule()
    def drop_expired(self) -> None:
        self.store.drop_expired(self.now)
        assert self.store.n_records == len(self.alive)

    @invariant()
    def who_is_alive_is_found(self) -> None:
        for key in (b"a", b"b"):
            found = {(key, peer.peer_id): peer.addrs for peer in self.store.get(key, self.now)}
            assert found == {e: addrs for e, (addrs, _) in self.alive.items() if e[0] == key}

    @invariant()
    def counts_are_of_what_is_held(self) -> None:
        held = Counter(name for names in self.store._records.values() for name in names)
        assert held == self.store._n_keys_of


TestStoreMachine = StoreMachine.TestCase
