from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tokenplace import defaults
from tokenplace.dht.messages import PeerAddrs
from tokenplace.dht.providers import ProviderStore

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


def test_a_full_store_makes_room_in_its_most_crowded_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "MAX_PROVIDER_RECORDS", 4)
    store = ProviderStore()
    store.add(KEY, PeerAddrs("ALICE", HOME), IP, now=0.0)
    for number in range(6):
        store.add(bytes([number]), PeerAddrs(f"sybil {number}", HOME), "198.51.100.1", now=1.0)
        assert store.n_records <= 4
    assert store.add(KEY, PeerAddrs("BOB", HOME), "192.0.2.1", now=2.0)
    assert store.n_records == 4
    assert {provider.peer_id for provider in store.get(KEY, 2.0)} == {"ALICE", "BOB"}


def test_a_store_without_any_room_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_PROVIDER_RECORDS", 0)
    assert not ProviderStore().add(KEY, PeerAddrs("ALICE", HOME), IP, now=0.0)


# ---------------------------------------------------------------- probes


def fill(store: ProviderStore, n_sybils: int) -> None:
    """Sybils, each in a network of its own, so that no network is crowded."""
    for number in range(n_sybils):
        store.add(KEY, PeerAddrs(f"sybil {number}", HOME), f"198.{number}.100.1", now=1.0 + number)


def ids_in(store: ProviderStore, now: float) -> list[str]:
    return [provider.peer_id for provider in store.get(KEY, now)]


def test_only_providers_of_full_keys_are_probed_each_once_in_a_while() -> None:
    store = ProviderStore()
    fill(store, defaults.MAX_PROVIDERS_PER_KEY - 1)
    assert store.next_to_probe(100.0) is None
    store.add(KEY, PeerAddrs("ALICE", HOME), IP, now=100.0)
    probed = set()
    while (provider := store.next_to_probe(100.0)) is not None:
        assert provider.peer_id not in probed
        probed.add(provider.peer_id)
    assert len(probed) == defaults.MAX_PROVIDERS_PER_KEY
    assert store.next_to_probe(100.0 + defaults.PROVIDER_PROBE_AGAIN_S) is None
    assert store.next_to_probe(101.0 + defaults.PROVIDER_PROBE_AGAIN_S) is not None


def test_who_failed_a_probe_goes_first_even_from_the_least_crowded_network() -> None:
    store = ProviderStore()
    fill(store, defaults.MAX_PROVIDERS_PER_KEY - 2)
    for name in ("ALICE", "BOB"):
        store.add(KEY, PeerAddrs(name, HOME), IP, now=0.0)  # the oldest, and a crowd of two
    for _ in range(defaults.MAX_PROVIDERS_PER_KEY):
        store.next_to_probe(100.0)
    for number in (7, 8):
        store.note_probed(PeerAddrs(f"sybil {number}", HOME), has_failed=True)
    assert ids_in(store, 100.0)[-2:] == ["sybil 7", "sybil 8"], "told last"
    for number in range(2):
        store.add(KEY, PeerAddrs(f"newcomer {number}", HOME), f"203.{number}.1.1", now=101.0)
    known = ids_in(store, 101.0)
    assert {"ALICE", "BOB"} <= set(known)
    assert not {"sybil 7", "sybil 8"} & set(known)


def test_what_a_probe_found_is_void_once_the_provider_moved_and_stays_when_it_renews() -> None:
    store = ProviderStore()
    fill(store, defaults.MAX_PROVIDERS_PER_KEY)
    while (provider := store.next_to_probe(100.0)) is not None:
        store.note_probed(provider, has_failed=True)
    store.add(KEY, PeerAddrs("sybil 3", HOME), "198.3.100.1", now=101.0)
    assert ids_in(store, 102.0)[0] != "sybil 3"
    store.add(KEY, PeerAddrs("sybil 3", MOVED), "198.3.100.1", now=103.0)
    assert ids_in(store, 104.0)[0] == "sybil 3"
    assert store.next_to_probe(104.0) == PeerAddrs("sybil 3", MOVED)
    store.note_probed(PeerAddrs("sybil 3", HOME), has_failed=True)
    assert ids_in(store, 104.0)[0] == "sybil 3", "that was about where it no longer is"


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

    @rule()
    def probe(self) -> None:
        if (provider := self.store.next_to_probe(self.now)) is not None:
            self.store.note_probed(provider, has_failed=True)

    @invariant()
    def counts_are_of_what_is_held(self) -> None:
        held = Counter(name for names in self.store._records.values() for name in names)
        assert held == self.store._n_keys_of
        assert self.store.n_records == held.total()
        assert self.store._probes.keys() <= held.keys()


TestStoreMachine = StoreMachine.TestCase
