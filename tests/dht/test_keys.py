from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tokenplace import defaults
from tokenplace.dht.keys import N_SHARDS, Kind, dht_key, keys_to_provide, keys_to_search, shard_of

VECTORS = Path(__file__).resolve().parent.parent / "vectors" / "dht_keys.json"
ALICE = bytes.fromhex(
    "0024080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"
)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
TINY_ARTIFACT = "b1" * 32


def test_keys_are_those_of_the_vectors() -> None:
    vectors = json.loads(VECTORS.read_text())
    for vector in vectors["keys"]:
        key = dht_key(
            vector["network"],
            Kind(vector["kind"]),
            vector["value"],
            date.fromisoformat(vector["day"]),
            vector["shard"],
        )
        assert key.hex() == vector["key"]
    for vector in vectors["shards"]:
        assert shard_of(bytes.fromhex(vector["peer_id"]), vector["n_shards"]) == vector["shard"]


@given(
    st.tuples(st.text(max_size=4), st.sampled_from(Kind), st.text(max_size=4), st.integers(0, 15)),
    st.tuples(st.text(max_size=4), st.sampled_from(Kind), st.text(max_size=4), st.integers(0, 15)),
)
def test_different_subjects_have_different_keys(
    one: tuple[str, Kind, str, int], other: tuple[str, Kind, str, int]
) -> None:
    def key(subject: tuple[str, Kind, str, int]) -> bytes:
        network, kind, value, shard = subject
        return dht_key(network, kind, value, date(2026, 3, 1), shard)

    assert (key(one) == key(other)) == (one == other)


@given(st.binary(min_size=1, max_size=42), st.floats(0, 4e9))
def test_who_searches_every_shard_finds_every_donor(peer_id: bytes, now: float) -> None:
    provided = keys_to_provide("main", peer_id, ["tiny"], [TINY_ARTIFACT], now)
    for kind, value in ((Kind.DONORS, ""), (Kind.MODEL, "tiny"), (Kind.ARTIFACT, TINY_ARTIFACT)):
        searched = keys_to_search("main", kind, value, now)
        assert len(searched) == len(set(searched)) == N_SHARDS[kind]
        assert len(set(searched) & set(provided)) == 1


@given(st.floats(0, 4e9), st.floats(0, defaults.ANNOUNCE_AHEAD_S))
def test_what_was_announced_within_the_hour_is_found_after_midnight(now: float, age: float) -> None:
    provided = keys_to_provide("main", ALICE, ["tiny"], [], now)
    assert set(provided) & set(keys_to_search("main", Kind.MODEL, "tiny", now + age))


def test_tomorrow_is_announced_in_the_last_hour_only() -> None:
    n_hours = [
        len(keys_to_provide("main", ALICE, ["tiny"], [TINY_ARTIFACT], NOON + hour * 3600 + extra))
        for hour, extra in ((0, 0), (10, 3599), (11, 0), (11, 3599), (12, 0))
    ]
    assert n_hours == [3, 3, 6, 6, 3]


def test_nothing_is_announced_twice() -> None:
    keys = keys_to_provide("main", ALICE, ["tiny", "tiny"], [TINY_ARTIFACT] * 2, NOON)
    assert len(keys) == 3


def test_networks_share_no_key() -> None:
    main = keys_to_provide("main", ALICE, ["tiny"], [TINY_ARTIFACT], NOON)
    lab = keys_to_provide("lab", ALICE, ["tiny"], [TINY_ARTIFACT], NOON)
    assert not set(main) & set(lab)
