"""Bytes of reach questions and answers."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenplace import defaults
from tokenplace.errors import RemoteProtocolError
from tokenplace.peer.reach_wire import (
    LENGTH,
    Answer,
    DialBack,
    Outcome,
    Proof,
    body_length,
    decode_answer,
    decode_question,
    encode,
)

NONCE = bytes(range(16))
QUESTION = {"op": "dial_back", "nonce": NONCE, "port": 4010}


def body_of(message: bytes) -> bytes:
    assert body_length(message[: LENGTH.size]) == len(message) - LENGTH.size
    return message[LENGTH.size :]


@given(nonce=st.binary(min_size=16, max_size=16), port=st.integers(1, 65535))
def test_questions_arrive_as_they_were(nonce: bytes, port: int) -> None:
    for question in (DialBack(nonce, port), Proof(nonce)):
        assert decode_question(body_of(encode(question))) == question


@given(outcome=st.sampled_from(Outcome), ip=st.ip_addresses())
def test_answers_arrive_as_they_were(outcome: Outcome, ip: object) -> None:
    answer = Answer(outcome, str(ip))
    assert decode_answer(body_of(encode(answer))) == answer


def test_unknown_fields_are_ignored_and_an_unknown_outcome_refuses() -> None:
    assert decode_question(msgpack.packb(QUESTION | {"later": [1]})) == DialBack(NONCE, 4010)
    told = msgpack.packb({"outcome": "maybe", "observed": "::1", "later": None})
    assert decode_answer(told) == Answer(Outcome.REFUSED, "::1")


@pytest.mark.parametrize(
    "change",
    [
        {"op": "dial"},
        {"op": 1},
        {"nonce": NONCE[:15]},
        {"nonce": NONCE + b"x"},
        {"nonce": "0123456789abcdef"},
        {"port": 0},
        {"port": 65536},
        {"port": "4010"},
        {"port": True},
    ],
)
def test_a_question_that_is_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_question(msgpack.packb(QUESTION | change))


@pytest.mark.parametrize("observed", ["", "peer.example", "1.2.3.4:5", "fe80::1%eth0", 7, "\x1b"])
def test_an_address_that_is_none_is_refused(observed: object) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_answer(msgpack.packb({"outcome": "proved", "observed": observed}))


@given(st.binary(max_size=64))
def test_noise_is_refused(noise: bytes) -> None:
    for decode in (decode_question, decode_answer):
        with pytest.raises(RemoteProtocolError):
            decode(noise)


def test_a_length_beyond_the_limit_is_refused_before_anything_is_read() -> None:
    most = defaults.MAX_REACH_MESSAGE_BYTES
    assert body_length(LENGTH.pack(most)) == most
    with pytest.raises(RemoteProtocolError):
        body_length(LENGTH.pack(most + 1))
