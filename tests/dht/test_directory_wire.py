"""The directory's bytes: what is written is read, and nothing else is believed or costs memory."""

from __future__ import annotations

import contextlib
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peer.mutations import ANYTHING, damaged
from tokenplace import defaults
from tokenplace.dht import directory_wire as wire
from tokenplace.dht.directory_wire import Entry, Op, Query
from tokenplace.errors import RemoteProtocolError

ENVELOPE = st.binary(max_size=200)
ENTRY = st.builds(Entry, ENVELOPE, ENVELOPE, ENVELOPE | st.none())
QUERY = st.builds(
    Query,
    st.sampled_from(Op),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=64) | st.binary(max_size=64),
    st.integers(1, defaults.MAX_DIRECTORY_ENTRIES),
)


@given(query=QUERY)
def test_a_question_is_read_as_it_was_asked(query: Query) -> None:
    data = wire.encode_query(query)
    size = wire.QUERY_LENGTH.size
    assert wire.query_length(data[:size]) == len(data) - size
    assert wire.decode_query(data[size:]) == query


@given(entries=st.lists(ENTRY, max_size=8))
def test_an_answer_is_read_as_it_was_given(entries: list[Entry]) -> None:
    data = wire.encode_answer(entries)
    size = wire.ANSWER_LENGTH.size
    assert wire.answer_length(data[:size]) == len(data) - size
    assert wire.decode_answer(data[size:]) == entries


@given(n=st.integers(0, 40), entry_bytes=st.integers(0, defaults.MAX_ADVERT_BYTES))
def test_an_answer_holds_what_fits(n: int, entry_bytes: int) -> None:
    entries = [Entry(bytes(entry_bytes), bytes(entry_bytes), b"")] * n
    data = wire.encode_answer(entries)[wire.ANSWER_LENGTH.size :]
    assert len(data) <= defaults.MAX_DIRECTORY_ANSWER_BYTES
    fitting = len(wire.decode_answer(data))
    assert fitting == min(n, defaults.MAX_DIRECTORY_ENTRIES) or (
        len(data) + 2 * entry_bytes + 32 > defaults.MAX_DIRECTORY_ANSWER_BYTES
    )


@given(data=st.binary(max_size=200))
def test_garbage_is_refused_and_never_more(data: bytes) -> None:
    for decode in (wire.decode_query, wire.decode_answer):
        try:
            decode(data)
        except RemoteProtocolError:
            continue
        assert msgpack.unpackb(data) is not None


RIGHT_QUERY = wire.encode_query(Query(Op.MODEL, "tiny-model", 3))[wire.QUERY_LENGTH.size :]
RIGHT_ANSWER = wire.encode_answer([Entry(b"keys", b"offer", b"live"), Entry(b"k", b"o")])[
    wire.ANSWER_LENGTH.size :
]


@given(query=damaged(RIGHT_QUERY), answer=damaged(RIGHT_ANSWER), anything=ANYTHING)
def test_damage_is_a_declared_error(query: bytes, answer: bytes, anything: object) -> None:
    fields = {"op": "peer", "value": anything, "max": 1, "later": anything}
    for data in (query, msgpack.packb(fields), msgpack.packb(fields | {"max": anything})):
        with contextlib.suppress(RemoteProtocolError):
            assert 0 < wire.decode_query(data).max_entries <= defaults.MAX_DIRECTORY_ENTRIES
    entry = {"keys": b"k", "offer": anything, "later": anything}
    for data in (answer, msgpack.packb(anything), msgpack.packb([entry])):
        with contextlib.suppress(RemoteProtocolError):
            assert all(isinstance(e.keys, bytes) for e in wire.decode_answer(data))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"op": "sample"},
        {"op": "sample", "max": 0},
        {"op": "sample", "max": 33},
        {"op": "sample", "max": True},
        {"op": "steal", "max": 1},
        {"op": ["sample"], "max": 1},
        {"op": "peer", "value": 7, "max": 1},
        [1],
        "sample",
    ],
)
def test_a_wrong_question_is_refused(fields: object) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.decode_query(msgpack.packb(fields))


def test_unknown_fields_are_ignored() -> None:
    query = {"op": "sample", "max": 3, "later": {"x": [1]}}
    assert wire.decode_query(msgpack.packb(query)) == Query(Op.SAMPLE, b"", 3)
    entry = {"keys": b"k", "later": [[{"x": 1}]], "offer": b"o", 7: None}
    assert wire.decode_answer(msgpack.packb([entry])) == [Entry(b"k", b"o")]


@pytest.mark.parametrize(
    "answer",
    [
        [{}],
        [{"keys": b"k"}],
        [{"keys": b"k", "offer": "o"}],
        [{"keys": b"k", "offer": [b"o"]}],
        [{"keys": b"k", "offer": bytes(defaults.MAX_ADVERT_BYTES + 1)}],
        [{"keys": b"k", "offer": b"o"}] * 33,
        [{"keys": b"k", "offer": b"o"} | {str(n): n for n in range(15)}],
        [[]],
        {},
        None,
    ],
)
def test_a_wrong_answer_is_refused(answer: object) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.decode_answer(msgpack.packb(answer))


def test_bytes_after_the_answer_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="after"):
        wire.decode_answer(msgpack.packb([]) + b"\x00")


def test_lengths_are_refused_before_anything_is_read() -> None:
    with pytest.raises(RemoteProtocolError, match="announced"):
        wire.query_length(b"\xff\xff")
    with pytest.raises(RemoteProtocolError, match="announced"):
        wire.answer_length(b"\xff\xff\xff\xff")


@pytest.mark.parametrize("name", [b"\xa1x", b"\xa4keys", b""], ids=["unknown", "known", "name"])
@pytest.mark.parametrize("one", [b"\x80", b"\x90", b"\xa0"])
def test_a_nested_answer_costs_no_memory(name: bytes, one: bytes) -> None:
    """256 KiB of empty maps would be 16 MB of dicts."""
    n = defaults.MAX_DIRECTORY_ANSWER_BYTES - 64
    bomb = b"\x91\x81" + name + b"\xdd" + n.to_bytes(4, "big") + one * n
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            wire.decode_answer(bomb)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * defaults.MAX_DIRECTORY_ANSWER_BYTES
