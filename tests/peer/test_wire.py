from __future__ import annotations

import dataclasses
import math
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peer.exchange_lab import TINY_MODEL, make_request
from tests.peer.mutations import ANYTHING, damaged
from tokenplace import defaults
from tokenplace.errors import (
    BadFormat,
    DonorBusy,
    InvalidRequest,
    RemoteProtocolError,
    RequestTooBig,
    StaleEpoch,
    TokenplaceError,
    UnknownKey,
    Unsupported,
)
from tokenplace.features import Requirement
from tokenplace.generation import (
    ChatInput,
    ChatMessage,
    IdsInput,
    JsonObject,
    JsonSchema,
    Resume,
    SamplingParams,
    Tool,
    ToolCall,
    ToolChoice,
)
from tokenplace.peer.refusal import REFUSALS, Refusal, decode_refusal, encode_refusal
from tokenplace.peer.request_map import decode_request
from tokenplace.peer.wire import encode_request, to_request
from tokenplace.sealing.suites import PUBLIC_KEY_BYTES

EPOCH, SECRET, REPLY_KEY = b"e" * 8, b"s" * 32, b"k" * PUBLIC_KEY_BYTES
BUCKET = "203.0.113.0/24"
REQUEST = make_request(
    model="", template="cd" * 32, attempt=2, max_tokens=5, stop=("x",), bucket=BUCKET
)
RICH: list[dict[str, Any]] = [
    {"n": 16, "top_logprobs": 20, "output": JsonSchema("{}")},
    {"sampling": SamplingParams(typical_p=0.5, logit_bias=((7, -1.5),))},
    {"n": 3, "resume": (Resume(2, (1, 2**32 - 1)), Resume(0, ())), "prompt_digest": b"d" * 32},
    {
        "input": ChatInput(
            (ChatMessage("tool", "x", (), "call_1", "look_up"),),
            (Tool("look_up", "", "{}"),),
            ToolChoice.REQUIRED,
            parallel_tool_calls=False,
        )
    },
]
FIELDS: dict[str, Any] = msgpack.unpackb(encode_request(REQUEST, EPOCH, SECRET, REPLY_KEY))


def payload(**changes: object) -> bytes:
    return bytes(msgpack.packb({**FIELDS, **changes}))


def test_a_request_arrives_as_it_was() -> None:
    request = decode_request(encode_request(REQUEST, EPOCH, SECRET, REPLY_KEY))
    assert (request.epoch, request.resp_secret, request.reply_key) == (EPOCH, SECRET, REPLY_KEY)
    assert to_request(request, BUCKET) == REQUEST
    for changes in RICH:
        asked = dataclasses.replace(REQUEST, **changes)
        sent = decode_request(encode_request(asked, EPOCH, SECRET, REPLY_KEY))
        assert to_request(sent, BUCKET) == asked


def requires(**changes: object) -> list[str]:
    asked = dataclasses.replace(REQUEST, **changes)  # type: ignore[arg-type]
    sent = msgpack.unpackb(encode_request(asked, EPOCH, SECRET, REPLY_KEY))
    names: list[str] = sent["requires"]
    return names


def test_what_an_older_donor_would_pass_over_is_required() -> None:
    chat = ChatInput((ChatMessage("user", "x"),))
    assert requires() == requires(input=chat) == requires(max_tokens=1, ignore_eog=True) == []
    assert requires(n=2) == ["choices"]
    assert requires(top_logprobs=0) == ["logprobs"]
    assert requires(output=JsonObject()) == ["grammar"]
    assert requires(resume=(Resume(0, ()),), prompt_digest=bytes(32)) == ["resume"]
    assert requires(sampling=SamplingParams(repeat_last_n=5)) == []
    for sampling in (
        SamplingParams(typical_p=0.9),
        SamplingParams(repeat_penalty=1.1),
        SamplingParams(presence_penalty=-1),
        SamplingParams(frequency_penalty=1),
        SamplingParams(logit_bias=((7, 0.0),)),
    ):
        assert requires(sampling=sampling) == ["penalties"]
    for with_tools in (
        dataclasses.replace(chat, tools=(Tool("look_up", "", "{}"),)),
        ChatInput((ChatMessage("assistant", "", (ToolCall("1", "look_up", "{}"),)),)),
        ChatInput((ChatMessage("tool", "x"),)),
    ):
        assert requires(input=with_tools) == ["tools"]
    assert requires(input=IdsInput((1, 2))) == ["prompt_ids"]
    everything = {name: value for changes in RICH for name, value in changes.items()}
    assert {*requires(**everything), "prompt_ids"} == set(Requirement)


def test_a_donor_knows_every_requirement_and_no_other() -> None:
    known = decode_request(payload(requires=[*Requirement] * 2))
    assert to_request(known, BUCKET) == REQUEST
    for name in ("Tools", "tools ", "", "~tools"):
        request = decode_request(payload(requires=[*Requirement, name]))
        with pytest.raises(Unsupported):
            to_request(request, BUCKET)


def test_the_models_local_name_stays_here() -> None:
    sent = encode_request(make_request(model="my-secret-alias"), EPOCH, SECRET, REPLY_KEY)
    assert b"my-secret-alias" not in sent


def test_the_keys_are_those_of_the_page() -> None:
    assert set(FIELDS) == {
        *("v", "op", "requires", "epoch", "resp_secret", "reply_key", "artifact", "template"),
        *("cache_scope", "seed", "as_of", "attempt", "body"),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": True},
        {"v": "1"},
        {"op": b"generate"},
        {"op": "x" * 65},
        {"requires": "x"},
        {"requires": [1]},
        {"requires": ["x"] * 33},
        {"epoch": b"e" * 7},
        {"epoch": "e" * 8},
        {"resp_secret": b"s" * 31},
        {"reply_key": b"k" * 1217},
        {"artifact": ""},
        {"artifact": TINY_MODEL.upper()},
        {"artifact": TINY_MODEL + "\n"},
        {"template": "x"},
        {"cache_scope": b""},
        {"seed": 1},
        {"as_of": "2025-02-30"},
        {"as_of": "20250131"},
        {"as_of": "2025-W01-1"},
        {"as_of": "0000-01-01"},
        {"as_of": None},
        {"attempt": -1},
        {"attempt": 256},
        {"attempt": False},
        {"hedge": 1},
        {"hedge": None},
        {"body": "{}"},
        {"body": {}},
        {"v": {"a": 1}},
        {"v": msgpack.ExtType(1, b"x")},
        {"v": msgpack.ExtType(1, b"")},
    ],
)
def test_a_wrong_value_is_bad_format(changes: dict[str, object]) -> None:
    with pytest.raises(BadFormat):
        decode_request(payload(**changes))


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_missing_key_is_bad_format(name: str) -> None:
    fields = {key: value for key, value in FIELDS.items() if key != name}
    with pytest.raises(BadFormat):
        decode_request(msgpack.packb(fields))


def with_pairs(*pairs: bytes) -> bytes:
    """The whole map with more pairs, already packed, at its end."""
    body = b"".join(msgpack.packb(key) + msgpack.packb(value) for key, value in FIELDS.items())
    n_pairs = len(FIELDS) + len(pairs)
    return b"\xde" + n_pairs.to_bytes(2, "big") + body + b"".join(pairs)


@pytest.mark.parametrize("pairs", [[b"\xa1v\x01"], [b"\xa3new\x01"] * 2, [b"\xa6resume\x90"] * 2])
def test_a_key_given_twice_is_bad_format(pairs: list[bytes]) -> None:
    assert decode_request(with_pairs(*pairs[1:]))
    with pytest.raises(BadFormat):
        decode_request(with_pairs(*pairs))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x90",
        b"\xc1",
        b"\x80",
        with_pairs() + b"\0",
        with_pairs()[:-1],
        with_pairs(b"\x01\x01"),  # a key that is no text
        with_pairs(b"\xd9\x41" + b"x" * 65 + b"\x01"),  # a long key
        with_pairs(*(b"\xa3" + b"%03d" % n + b"\x01" for n in range(60))),
        with_pairs(b"\xa1x" + b"\x91" * 5000 + b"\x90"),  # nested
        with_pairs(b"\xa1x\xdd\xff\xff\xff\xff"),
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_what_is_not_the_map_it_must_be_is_bad_format(data: bytes) -> None:
    with pytest.raises(BadFormat):
        decode_request(data)


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda data: with_pairs() + data))
def test_garbage_is_bad_format(data: bytes) -> None:
    try:
        decode_request(data)
    except BadFormat:
        return
    assert data == with_pairs()


@given(
    damaged(with_pairs())
    | st.tuples(st.sampled_from(sorted(FIELDS)), ANYTHING).map(
        lambda change: payload(**{change[0]: change[1]})
    )
)
def test_a_damaged_request_is_a_declared_error(data: bytes) -> None:
    try:
        opened = decode_request(data)
        to_request(opened, BUCKET)
    except (BadFormat, Unsupported, InvalidRequest):
        return
    assert 0 <= opened.attempt <= 255


def test_unknown_keys_are_ignored_whatever_they_hold() -> None:
    assert decode_request(payload(credential=b"c" * 100, new=[{"a": [1]}] * 100, x="y" * 999))


def test_a_bomb_in_an_unknown_key_takes_no_memory() -> None:
    bomb = b"\xa4bomb\xdd" + (1 << 20).to_bytes(4, "big") + b"\x80" * (1 << 20)
    data = with_pairs(bomb)
    tracemalloc.start()
    decode_request(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(data)  # a million dicts would be 64 times as much


@pytest.mark.parametrize(
    "changes",
    [
        {"op": "of later"},
        {"requires": ["of later"]},
    ],
)
def test_what_this_version_lacks_is_unsupported(changes: dict[str, object]) -> None:
    request = decode_request(payload(**changes))
    with pytest.raises(Unsupported):
        to_request(request, BUCKET)


@pytest.mark.parametrize("key", ["requires", "resume", "prompt_digest", "v"])
def test_a_bomb_where_a_list_belongs_takes_no_memory(key: str) -> None:
    size = 1 << 20
    bomb = b"\x91" * 3 + b"\xdd" + size.to_bytes(4, "big") + b"\x90" * size
    fields = {name: value for name, value in FIELDS.items() if name != key}
    data = msgpack.packb(fields)
    data = bytes([data[0] + 1]) + data[1:] + msgpack.packb(key) + bomb
    tracemalloc.start()
    with pytest.raises(BadFormat):
        decode_request(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(data)


def test_a_bad_body_is_judged_last() -> None:
    request = decode_request(payload(body=b"{}"))
    with pytest.raises(InvalidRequest):
        to_request(request, BUCKET)
    too_big = decode_request(payload(body=bytes(defaults.MAX_BODY_BYTES + 1)))
    with pytest.raises(RequestTooBig):
        to_request(too_big, BUCKET)


@pytest.mark.parametrize("error", [UnknownKey(), StaleEpoch(), RequestTooBig(), BadFormat("x")])
def test_a_refusal_arrives(error: TokenplaceError) -> None:
    data = encode_refusal(Refusal(error, b"keys", b"live"))
    assert data[:1] == b"\0"
    assert int.from_bytes(data[1:3], "big") == len(data) - 3
    refusal = decode_refusal(data[3:])
    assert type(refusal.error) is type(error)
    assert (refusal.keys, refusal.live) == (b"keys", b"live")


def test_a_busy_donor_says_when() -> None:
    refusal = decode_refusal(encode_refusal(Refusal(DonorBusy(retry_after_s=1.5)))[3:])
    assert refusal.error.retry_after_s == 1.5
    assert (refusal.keys, refusal.live) == (None, None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"\x90",
        b"\xa4busy",
        b"\x81",
        msgpack.packb({"code": 1}),
        msgpack.packb({"code": []}),
        msgpack.packb({"code": "internal"}),  # only ever sealed
        msgpack.packb({"code": "of later"}),
        msgpack.packb({"code": "busy", "x": [0] * 65}),
    ],
)
def test_a_malformed_refusal_breaks_the_protocol(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_refusal(data)


@pytest.mark.parametrize("advice", [-1, 3601, "1", True, None, [], math.inf, (1 << 64) - 1])
def test_senseless_advice_is_ignored(advice: object) -> None:
    data = msgpack.packb({"code": "busy", "retry_after_s": advice, "keys": 1, "live": "x"})
    refusal = decode_refusal(data)
    assert refusal.error.retry_after_s is None
    assert (refusal.keys, refusal.live) == (None, None)


RIGHT_REFUSAL = encode_refusal(Refusal(DonorBusy(retry_after_s=2), b"keys", b"live"))[3:]


@given(st.binary(max_size=300) | damaged(RIGHT_REFUSAL))
def test_a_garbage_refusal_is_a_declared_error(data: bytes) -> None:
    try:
        refusal = decode_refusal(data)
    except RemoteProtocolError:
        return
    assert refusal.error.code in REFUSALS


def test_a_refusal_holds_the_largest_signed_objects_a_donor_has() -> None:
    data = encode_refusal(Refusal(UnknownKey(), bytes(3000), bytes(500)))
    assert len(data) <= 3 + defaults.MAX_REFUSAL_BYTES
    with pytest.raises(AssertionError):
        encode_refusal(Refusal(UnknownKey(), bytes(8000), bytes(500)))
