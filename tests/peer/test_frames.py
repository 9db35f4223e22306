from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peer.write_vectors import plain
from tokenplace import defaults
from tokenplace.errors import (
    DONOR_ERRORS,
    ConfigError,
    ConnectionLost,
    DonorBusy,
    DonorInternalError,
    InvalidRequest,
    RemoteProtocolError,
    TokenplaceError,
)
from tokenplace.generation import (
    Accepted,
    Alive,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    GrammarStop,
    LengthStop,
    Logprob,
    Phase,
    StringStop,
    Timings,
    Tokens,
    TopToken,
    Usage,
)
from tokenplace.peer.frames import FinalDonorError, decode_frames, encode_frame

PATH = Path(__file__).resolve().parent.parent / "vectors" / "frames.json"
VECTORS = json.loads(PATH.read_text())["chunks"]

U32 = st.integers(0, (1 << 32) - 1)
STOPS = (
    st.builds(EogStop, U32)
    | st.builds(StringStop, st.text(st.characters(exclude_categories=["Cs"]), max_size=64))
    | st.just(LengthStop())
    | st.just(GrammarStop())
)
PIECES = st.binary(max_size=40)
LOGS = st.floats(max_value=0, width=32, allow_nan=False, allow_infinity=False)
LOGPROBS = st.builds(
    Logprob, LOGS, st.lists(st.builds(TopToken, U32, PIECES, LOGS), max_size=20).map(tuple)
)


@st.composite
def tokens(draw: st.DrawFn) -> Tokens:
    n = draw(st.integers(1, 20))
    ids = draw(st.lists(U32, min_size=n, max_size=n))
    pieces = draw(st.lists(PIECES, min_size=n, max_size=n))
    logprobs: list[Logprob] = []
    if n <= 5 and draw(st.booleans()):
        logprobs = draw(st.lists(LOGPROBS, min_size=n, max_size=n))
    return Tokens(draw(U32), draw(U32), tuple(ids), tuple(pieces), tuple(logprobs))


DIGESTS = st.binary(min_size=32, max_size=32)
EVENTS: st.SearchStrategy[Event] = (
    st.builds(Accepted, DIGESTS, U32, U32, U32, U32, st.just("tp/1"), U32, U32, st.just(""))
    | st.builds(Alive, st.sampled_from(Phase), st.floats(0, 1), U32, U32)
    | tokens()
    | st.builds(
        Finished,
        st.lists(st.builds(ChoiceEnd, U32, STOPS), max_size=3).map(tuple),
        st.builds(Usage, U32, U32, U32),
        st.builds(Timings, U32, U32, U32),
    )
)
ERROR: dict[str, Any] = {
    "f": "error",
    "code": "busy",
    "scope": "donor",
    "retry_elsewhere": True,
    "message": "",
}


@given(st.lists(EVENTS, max_size=5))
def test_events_arrive_as_they_were(events: list[Event]) -> None:
    assert decode_frames(b"".join(map(encode_frame, events))) == events


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["frames"])
    try:
        frames = decode_frames(data)
    except TokenplaceError as error:
        outcome = error.code.value
    else:
        outcome = "success"
        assert [plain(msgpack.unpackb(encode_frame(f))) for f in frames] == vector["means"]
    assert outcome == vector["expect"]


def test_log_probabilities_cross_as_float32() -> None:
    sent = Tokens(0, 0, (1,), (b"x",), (Logprob(-0.1, (TopToken(1, b"x", -0.1),)),))
    (received,) = decode_frames(encode_frame(sent))
    assert isinstance(received, Tokens)
    (logprob,) = received.logprobs
    assert logprob.logprob == logprob.top[0].logprob == pytest.approx(-0.1)
    assert logprob.logprob != -0.1
    bare = len(encode_frame(dataclasses.replace(sent, logprobs=())))
    assert len(encode_frame(sent)) - bare == len("logprobs") + 1 + 2 + 5 + 1 + 1 + 1 + 3 + 5


def test_the_largest_end_fits_the_reserve() -> None:
    stop = StringStop("s" * defaults.MAX_STOP_STRING_BYTES)
    ends = tuple(ChoiceEnd(choice, stop) for choice in range(defaults.MAX_CHOICES))
    most = (1 << 32) - 1
    end = encode_frame(Finished(ends, Usage(most, most, most), Timings(most, most, most)))
    accepted = encode_frame(Accepted(bytes(32), most, most, most, most, "s" * 32, most, most))
    assert len(end) + len(accepted) <= defaults.CHUNK_RESERVE_BYTES
    numbers = {"n" * 63 + str(n): -(1 << 53) for n in range(8)}
    error = DonorBusy("\U0001f600" * 600, param="\U0001f600" * 64, numbers=numbers)
    assert len(encode_frame(error)) + len(accepted) <= defaults.CHUNK_RESERVE_BYTES


@pytest.mark.parametrize("kind", DONOR_ERRORS.values())
def test_every_donor_error_arrives_as_its_class(kind: type[TokenplaceError]) -> None:
    sent = kind("detail", hint="hint", param="stop", retry_after_s=2, numbers={"n_ctx": 2048})
    (received,) = decode_frames(encode_frame(sent))
    assert type(received) is kind
    assert received.detail == "detail hint"
    assert (received.param, received.retry_after_s) == ("stop", 2.0)
    assert received.numbers == {"n_ctx": 2048}
    assert received.retry_elsewhere == sent.retry_elsewhere


def test_an_error_frame_has_the_keys_of_the_page() -> None:
    fields = msgpack.unpackb(encode_frame(InvalidRequest("too hot", param="temperature")))
    assert fields == {
        "f": "error",
        "code": "invalid_request",
        "scope": "app",
        "retry_elsewhere": False,
        "message": "too hot",
        "param": "temperature",
    }


@pytest.mark.parametrize(
    "error", [TokenplaceError("x"), ConfigError("/home/bob/x"), ConnectionLost("x")]
)
def test_what_happened_inside_a_donor_stays_there(error: TokenplaceError) -> None:
    fields = msgpack.unpackb(encode_frame(error))
    assert (fields["code"], fields["message"]) == ("internal", "")


def test_a_long_message_is_cut() -> None:
    (received,) = decode_frames(encode_frame(DonorBusy("ü" * 600, param="p" * 100)))
    assert isinstance(received, DonorBusy)
    assert received.detail == "ü" * defaults.MAX_ERROR_MESSAGE_CHARS
    assert received.param == "p" * 64


@pytest.mark.parametrize(
    ("retry_elsewhere", "kind"), [(True, DonorInternalError), (False, FinalDonorError)]
)
def test_an_unknown_code_does_as_it_says(
    retry_elsewhere: bool, kind: type[TokenplaceError]
) -> None:
    frame = ERROR | {"code": "of later", "retry_elsewhere": retry_elsewhere}
    (received,) = decode_frames(msgpack.packb(frame))
    assert type(received) is kind
    assert received.retry_elsewhere == retry_elsewhere


def test_a_known_code_does_as_its_class_says() -> None:
    (received,) = decode_frames(msgpack.packb(ERROR | {"retry_elsewhere": False}))
    assert isinstance(received, DonorBusy)
    assert received.retry_elsewhere


def test_a_stranger_does_not_steer_the_terminal() -> None:
    frame = ERROR | {"message": "a\x1b[2Jb\r\nc", "param": "\x07"}
    (received,) = decode_frames(msgpack.packb(frame))
    assert isinstance(received, TokenplaceError)
    assert received.detail == "a [2Jb  c"
    assert received.param == " "


def test_codes_of_this_side_are_not_a_donors_to_send() -> None:
    (received,) = decode_frames(msgpack.packb(ERROR | {"code": "model_not_found"}))
    assert type(received) is DonorInternalError


@pytest.mark.parametrize(
    "changes",
    [
        {"code": 1},
        {"code": "x" * 65},
        {"retry_elsewhere": 1},
        {"message": b"x"},
        {"message": "x" * 513},
        {"param": 1},
        {"numbers": []},
        {"numbers": {"a": 1.5}},
        {"numbers": {"a": True}},
        {"numbers": {"a": (1 << 53) + 1}},
        {"numbers": {"\x1b": 1}},
        {"numbers": {b"a": 1}},
        {"numbers": {"x" * 65: 1}},
        {"numbers": {str(n): n for n in range(9)}},
    ],
)
def test_a_malformed_error_breaks_the_protocol(changes: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_frames(msgpack.packb(ERROR | changes))


def test_unknown_frames_and_keys_are_ignored() -> None:
    alive = Alive(Phase.PREFILL, 0.5, 0, 700)
    known = msgpack.unpackb(encode_frame(alive)) | {"new": [1, {"a": b"b"}]}
    unknown = {"f": "receipt", "x": 1}
    assert decode_frames(msgpack.packb(unknown) + msgpack.packb(known)) == [alive]


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 1 << 40) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def nearly_frames(draw: st.DrawFn) -> bytes:
    """A right frame with one value replaced, or a byte of it changed."""
    right = encode_frame(draw(EVENTS))
    if draw(st.booleans()):
        position = draw(st.integers(0, len(right) - 1))
        return right[:position] + draw(st.binary(max_size=2)) + right[position + 1 :]
    fields = msgpack.unpackb(right)
    fields[draw(st.sampled_from(sorted(fields)))] = draw(JSONISH)
    return bytes(msgpack.packb(fields))


@given(nearly_frames() | st.binary(max_size=100))
def test_malformed_frames_are_a_declared_error(data: bytes) -> None:
    try:
        frames = decode_frames(data)
    except RemoteProtocolError:
        return
    for frame in frames:
        encode_frame(frame)
