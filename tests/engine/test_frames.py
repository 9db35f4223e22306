"""Frames and messages between engine and worker: every cut, and everything that is none."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.parts import submit
from tokenplace import defaults
from tokenplace.engine.frames import BadFrame, FrameDecoder, encode_frame
from tokenplace.engine.messages import (
    Cancel,
    Count,
    Counted,
    Done,
    Embed,
    Embedded,
    FromWorker,
    Load,
    LoadFailed,
    NewTokens,
    Progress,
    Queued,
    Ready,
    Refused,
    Score,
    Scored,
    ToWorker,
    from_value,
    to_value,
)

MESSAGES: list[ToWorker | FromWorker] = [
    Load("/models/tiny.gguf", 2, None, 8, 1 << 30, "q8_0", None, "auto"),
    submit(
        segments=(("a", True), ("<|im_end|>", False)),
        stop=(b"\n", b"END"),
        resume=((0, (5, 6)), (2, ())),
        digest=bytes(32),
    ),
    Cancel(7),
    Embed(1, "alice", ("one", "two"), None),
    Count(1, (("a", True),)),
    Score(1, "alice", (("a", True),), (5, 6), bytes(16), (), bytes(8), 0),
    LoadFailed("no"),
    Ready(4096, 8, "{{ x }}", "<s>", "</s>", ("<s>", "</s>"), "KV f16", 160.5, 90.0, ("network",)),
    Queued(1, b"d" * 32, 12, 3, 4096, 100, 250, 1),
    Progress(1, "prefill", 0.5, 0),
    NewTokens(1, 0, 4, (17, 2), (b"\xf0\x9f", b"\x98\x80"), ((-0.5, ((17, b"\xf0\x9f", -0.5),)),)),
    Done(1, ((0, b"END"), (1, 2), (2, "length")), 12, 3, 40, 0, 90, 400, 161.0, 91.0),
    Embedded(1, 0, (bytes(8),), (3,), True),
    Counted(1, 12),
    Scored(1, 0, ((-0.5, 0.0, 0, 0.0),), (17,), 12, True),
    Refused(1, "context_length_exceeded", "too long", (("n_prompt", 9), ("n_ctx", 8))),
]
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=10,
)


@given(st.lists(VALUES, max_size=5), st.data())
def test_any_cut_gives_the_same_values(values: list[Any], data: st.DataObject) -> None:
    stream = b"".join(map(encode_frame, values))
    decoder = FrameDecoder()
    received = []
    while stream:
        n = data.draw(st.integers(1, len(stream)))
        decoder.receive_data(stream[:n])
        stream = stream[n:]
        while (value := decoder.next_value()) is not None:
            received.append(value)
    assert received == values


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waits(data: bytes) -> None:
    decoder = FrameDecoder()
    decoder.receive_data(data)
    try:
        while (value := decoder.next_value()) is not None:
            from_value(value)
    except BadFrame:
        pass


def test_a_huge_frame_is_refused_before_it_is_buffered() -> None:
    decoder = FrameDecoder()
    decoder.receive_data(struct.pack(">I", defaults.MAX_CHILD_FRAME_BYTES + 1))
    with pytest.raises(BadFrame):
        decoder.next_value()
    with pytest.raises(BadFrame):
        encode_frame(bytes(defaults.MAX_CHILD_FRAME_BYTES))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_survive_the_pipe(message: ToWorker | FromWorker) -> None:
    decoder = FrameDecoder()
    decoder.receive_data(encode_frame(to_value(message)))
    assert from_value(decoder.next_value()) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_of_other_fields_are_refused(message: ToWorker | FromWorker) -> None:
    name, *values = to_value(message)
    for place in range(len(values)):
        with pytest.raises(BadFrame):
            from_value((name, *values[:place], object(), *values[place + 1 :]))
    for wrong in [(name,), (name, *values, 1), ("Nothing", *values), (name, *values)[:-1], 5, ()]:
        with pytest.raises(BadFrame):
            from_value(wrong)


@pytest.mark.parametrize(
    "body", [msgpack.packb(None), b"\xc1", b"\x92\x01", msgpack.packb(1) * 2, b"\xa1\xff"]
)
def test_bodies_that_are_no_value_are_refused(body: bytes) -> None:
    decoder = FrameDecoder()
    decoder.receive_data(struct.pack(">I", len(body)) + body)
    with pytest.raises(BadFrame):
        decoder.next_value()
