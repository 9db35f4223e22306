"""Grease goes into what is sent, costs nothing, and changes nothing for who reads it."""

from __future__ import annotations

import random
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peer.exchange_lab import make_request
from tokenplace import defaults
from tokenplace.errors import DonorBusy, UnknownKey
from tokenplace.generation import Accepted, Alive, Phase, TextInput, Tokens
from tokenplace.peer import grease
from tokenplace.peer.frames import Frame, decode_frames, encode_frame
from tokenplace.peer.refusal import Refusal, decode_refusal, encode_refusal
from tokenplace.peer.request_map import decode_request
from tokenplace.peer.wire import encode_request
from tokenplace.sealing.answer import MAX_FRAMES_BYTES, padding_bytes
from tokenplace.sealing.request import padded_bytes
from tokenplace.sealing.suites import PUBLIC_KEY_BYTES

DICE = st.integers(0, 1 << 32).map(random.Random)
SEALING = (b"e" * 8, b"s" * 32, b"k" * PUBLIC_KEY_BYTES)
ACCEPTED = Accepted(bytes(32), 5, 0, 2048, 100, "tp/1", 1500, 0)
TOKENS = Tokens(0, 0, (11, 70000), (b"one", b"two"))
FRAMES: list[list[Frame]] = [
    [ACCEPTED],
    [ACCEPTED, TOKENS],
    [TOKENS],
    [Alive(Phase.DECODE, 0.5, 0)],
    [DonorBusy("no room", retry_after_s=2.0, numbers={"n_ctx": 1})],
]


@pytest.fixture
def always_greased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "GREASED_CHUNKS", 1)


@given(dice=DICE, prompt=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_request_has_one_key_that_means_nothing(dice: random.Random, prompt: str) -> None:
    request = make_request(input=TextInput(prompt))
    plain = encode_request(request, *SEALING)
    greased = encode_request(request, *SEALING, dice)
    assert decode_request(greased) == decode_request(plain)
    assert padded_bytes(len(greased)) == padded_bytes(len(plain))
    names = set(msgpack.unpackb(greased)) - set(msgpack.unpackb(plain))
    assert greased == plain or [name[0] for name in names] == [grease.PREFIX]


def test_usual_requests_have_it_and_full_ones_do_not_grow() -> None:
    dice = random.Random(1)
    request = make_request("a usual prompt " * 20)
    assert all(
        encode_request(request, *SEALING, dice) != encode_request(request, *SEALING)
        for _ in range(100)
    )
    room = 2044 - len(encode_request(make_request("x" * 300), *SEALING))
    full = make_request("x" * (300 + room))
    plain = encode_request(full, *SEALING)
    assert len(plain) == 2044
    assert {encode_request(full, *SEALING, dice) for _ in range(100)} == {plain}


def test_every_place_and_every_type_is_drawn() -> None:
    dice = random.Random(1)
    pairs = [grease.draw_pair(dice) for _ in range(500)]
    assert {type(value) for _, value in pairs} == {
        *(type(None), bool, int, float, str, bytes, list, dict),
    }
    assert max(len(msgpack.packb(name) + msgpack.packb(value)) for name, value in pairs) <= 49
    places = set()
    for _ in range(500):
        fields = grease.with_unknown_key({"a": 1, "b": 2, "c": 3}, dice)
        assert [name for name in fields if name in "abc"] == ["a", "b", "c"]
        (place,) = (n for n, name in enumerate(fields) if name not in "abc")
        places.add(place)
    assert places == {0, 1, 2, 3}


@given(dice=DICE)
def test_a_refusal_says_the_same(dice: random.Random) -> None:
    refusal = Refusal(UnknownKey(), b"k" * 3000, b"l" * 500)
    data = encode_refusal(refusal, dice)
    assert data != encode_refusal(refusal)
    read = decode_refusal(data[3:])
    assert (type(read.error), read.keys, read.live) == (UnknownKey, refusal.keys, refusal.live)


@pytest.mark.usefixtures("always_greased")
@pytest.mark.parametrize("is_final", [False, True])
@pytest.mark.parametrize("frames", FRAMES, ids=lambda frames: type(frames[-1]).__name__)
def test_a_chunk_says_the_same_and_stays_as_large(frames: list[Frame], is_final: bool) -> None:
    data = b"".join(map(encode_frame, frames))
    dice = random.Random(1)
    seen = set()
    for _ in range(300):
        greased = grease.grease_chunk(data, dice, is_final=is_final)
        seen.add(greased)
        assert padding_bytes(len(greased)) + len(greased) == padding_bytes(len(data)) + len(data)
        assert [encode_frame(f) for f in decode_frames(greased)] == [
            encode_frame(f) for f in frames
        ]
        assert is_final <= greased.endswith(data[1:])  # nothing behind the end
        assert decode_all(greased)[0]["f"] == decode_all(data)[0]["f"]  # nor before the first
    assert len(seen) > 100


def decode_all(data: bytes) -> list[dict[str, object]]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    return list(unpacker)


@pytest.mark.usefixtures("always_greased")
def test_both_kinds_of_grease_are_put_into_chunks() -> None:
    dice = random.Random(1)
    data = encode_frame(TOKENS)
    greased = [decode_all(grease.grease_chunk(data, dice, is_final=False)) for _ in range(100)]
    assert any(len(frames) == 2 for frames in greased)
    assert any(len(frames) == 1 and len(frames[0]) == 6 for frames in greased)


@pytest.mark.usefixtures("always_greased")
def test_there_is_none_where_it_has_no_room() -> None:
    dice = random.Random(1)
    assert grease.grease_chunk(b"", dice, is_final=False) == b""  # a heartbeat before `accepted`
    room = MAX_FRAMES_BYTES - len(encode_frame(replace(TOKENS, ids=(1,), pieces=(b"",))))
    full = encode_frame(Tokens(0, 0, (1,), (bytes(room - 1),)))
    assert len(full) == MAX_FRAMES_BYTES
    assert {grease.grease_chunk(full, dice, is_final=False) for _ in range(50)} == {full}


def test_most_chunks_have_none() -> None:
    dice = random.Random(1)
    data = encode_frame(TOKENS)
    n = sum(grease.grease_chunk(data, dice, is_final=False) != data for _ in range(800))
    assert 20 < n < 200


def test_a_map_that_is_full_stays_as_it_is() -> None:
    fields = msgpack.packb({"f": "of later"} | {str(n): n for n in range(14)})
    assert grease._with_key(fields, "~x", 1) == fields
