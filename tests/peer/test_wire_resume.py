"""What a request says of an answer that is to be resumed."""

from __future__ import annotations

import dataclasses
import struct

import msgpack
import pytest

from tests.peer.exchange_lab import make_request
from tests.peer.test_wire import BUCKET, EPOCH, REPLY_KEY, REQUEST, SECRET, payload
from tokenplace import defaults
from tokenplace.errors import BadFormat, InvalidRequest
from tokenplace.generation import Resume, TextInput
from tokenplace.peer import gen1
from tokenplace.peer.request_map import decode_request
from tokenplace.peer.wire import encode_request, to_request
from tokenplace.sealing.request import padded_bytes


def test_resume_has_the_ids_as_bytes_and_an_empty_one_asks_for_nothing() -> None:
    resuming = make_request(resume=(Resume(0, (1, 2)),), prompt_digest=b"d" * 32)
    fields = msgpack.unpackb(encode_request(resuming, EPOCH, SECRET, REPLY_KEY))
    assert fields["resume"] == [{"choice": 0, "ids": b"\1\0\0\0\2\0\0\0"}]
    assert fields["prompt_digest"] == b"d" * 32
    nothing: list[dict[str, object]] = [
        {"resume": []},
        {"prompt_digest": b""},
        {"prompt_digest": 0},
    ]
    for changes in nothing:
        assert to_request(decode_request(payload(**changes)), BUCKET) == REQUEST


def resuming(*resume: object, digest: object = bytes(32)) -> bytes:
    return payload(resume=list(resume), prompt_digest=digest)


@pytest.mark.parametrize(
    "data",
    [
        payload(resume=0),
        payload(resume={}),
        payload(resume=[{"choice": 0, "ids": b""}]),  # without a digest
        resuming({"choice": 0, "ids": b""}, digest=bytes(31)),
        resuming({"choice": 0, "ids": b""}, digest="0" * 32),
        resuming(0),
        resuming({}),
        resuming({"choice": 0}),
        resuming({"ids": b""}),
        resuming({"choice": 16, "ids": b""}),
        resuming({"choice": -1, "ids": b""}),
        resuming({"choice": True, "ids": b""}),
        resuming({"choice": 0, "ids": [1]}),
        resuming({"choice": 0, "ids": b"123"}),
        resuming(*[{"choice": 0, "ids": b""}] * 2),
        resuming(*({"choice": choice, "ids": b""} for choice in range(17))),
        resuming({"choice": 0, "ids": bytes(4 * defaults.MAX_NEW_TOKENS + 4)}),
        resuming(
            {"choice": 0, "ids": bytes(4 * defaults.MAX_NEW_TOKENS)}, {"choice": 1, "ids": bytes(4)}
        ),
    ],
)
def test_a_malformed_resume_is_bad_format(data: bytes) -> None:
    with pytest.raises(BadFormat):
        decode_request(data)


def test_the_longest_resume_beside_the_largest_body() -> None:
    ids = tuple(range(defaults.MAX_NEW_TOKENS))
    asked = make_request(model="", bucket=BUCKET, resume=(Resume(0, ids),), prompt_digest=bytes(32))
    room = defaults.MAX_BODY_BYTES - len(gen1.encode_body(make_request("")))
    asked = dataclasses.replace(asked, input=TextInput("x" * room))
    sent = encode_request(asked, EPOCH, SECRET, REPLY_KEY)
    assert padded_bytes(len(sent)) <= defaults.MAX_PADDED_BYTES
    assert to_request(decode_request(sent), BUCKET) == asked


def test_unknown_keys_of_a_resume_are_ignored() -> None:
    request = decode_request(resuming({"new": [[1]], "choice": 0, "ids": bytes(8), "~a": {}}))
    assert request.resume == (Resume(0, (0, 0)),)


def test_a_choice_that_was_not_asked_for_is_not_resumed() -> None:
    request = decode_request(resuming({"choice": 1, "ids": struct.pack("<I", 7)}))
    with pytest.raises(InvalidRequest) as refusal:
        to_request(request, BUCKET)
    assert refusal.value.param == "resume"
