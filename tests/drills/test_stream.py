"""The strict reader: what a good stream is, and that it sees each way of being a bad one.

Start at `test_a_good_stream_has_no_faults_however_it_is_cut`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.drills.stream import End, Stream
from tokenplace.api_shim.sse import DONE, encode_comment, encode_event

Events = list[Any]  # an object, a comment (text) or bytes as they are
HEAD = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chunk(delta: dict[str, Any], why: str | None = None, index: int = 0) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": why}
    return {**HEAD, "choices": [choice], "usage": None}


def good() -> Events:
    return [
        "waiting",
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "naïve "}),
        chunk({"content": "日本\n\n"}),
        chunk({}, "stop"),
        {**HEAD, "choices": [], "usage": USAGE},
        "served by BOB",
        DONE,
    ]


def failed() -> Events:
    return [*good()[:3], "route: BOB=connection_lost@decode", {"error": {"code": "busy"}}]


def encode(events: Events) -> bytes:
    return b"".join(map(encode_one, events))


def encode_one(event: Any) -> bytes:
    if isinstance(event, bytes):
        return event
    return encode_comment(event) if isinstance(event, str) else encode_event(event)


def read(events: Events, *, is_orderly: bool = True) -> Stream:
    stream = Stream()
    for now, event in enumerate(events):
        stream.take(encode_one(event), float(now))
    stream.close(float(len(events)), is_orderly=is_orderly)
    return stream


@given(st.lists(st.integers(min_value=0, max_value=len(encode(good())))))
def test_a_good_stream_has_no_faults_however_it_is_cut(cuts: Sequence[int]) -> None:
    data, stream = encode(good()), Stream()
    edges = [0, *sorted(cuts), len(data)]
    for start, end in pairwise(edges):
        stream.take(data[start:end], 1.0)
    stream.close(2.0, is_orderly=True)
    assert stream.faults == []
    assert stream.end is End.WHOLE
    assert stream.essence == ((0, "naïve 日本\n\n", (), "stop"), 3, 2, 5)
    assert stream.comments == ["waiting", "served by BOB"]


def test_an_error_and_an_abort_are_a_proper_end() -> None:
    stream = read(failed(), is_orderly=False)
    assert (stream.end, stream.error, stream.faults) == (End.FAILED, "busy", [])
    assert stream.error_at == 4.0


def replaced(place: int, *events: Any) -> Callable[[Events], Events]:
    return lambda all_events: [*all_events[:place], *events, *all_events[place + 1 :]]


def text_of(**changes: Any) -> dict[str, Any]:
    return {**chunk({"content": "x"}), **changes}


BAD = {
    "neither [DONE] nor an error": lambda events: events[:4],
    "the body ends within an event": lambda events: [*events[:-1], DONE[:-1]],
    "a delta before the role": replaced(1, "nothing"),
    "a second role": replaced(3, chunk({"role": "assistant"})),
    "something behind finish_reason": replaced(5, chunk({"content": "x"})),
    "[DONE] without a finish_reason": replaced(4, "nothing"),
    "usage before the last finish_reason": replaced(4, "nothing"),
    "[DONE] without usage": replaced(5, "nothing"),
    "usage does not add up": replaced(
        5, {**HEAD, "choices": [], "usage": {**USAGE, "total_tokens": 6}}
    ),
    "something behind usage": replaced(6, chunk({"content": "x"})),
    "something behind the end": replaced(7, DONE, chunk({"content": "x"})),
    "id, object, created or model changed": replaced(3, text_of(id="b")),
    "an event is not JSON": replaced(3, b"data: {\n\n"),
    "an event is not UTF-8": replaced(3, b"data: \xe6\x97\n\n"),
    "neither data nor a comment": replaced(3, b"event: x\n\n"),
    "[DONE] after choices [0, 1] of 1": replaced(
        4, chunk({"role": "assistant"}, "stop", index=1), chunk({}, "stop")
    ),
}


@pytest.mark.parametrize("fault", list(BAD))
def test_each_broken_rule_is_seen(fault: str) -> None:
    assert fault in read(BAD[fault](good())).faults


def test_an_end_that_is_not_what_the_last_event_says_is_a_fault() -> None:
    assert read(failed(), is_orderly=True).faults == ["an orderly end of the body after an error"]
    assert read(good(), is_orderly=False).faults == ["the body was cut off behind [DONE]"]


def test_the_longest_pause_is_between_texts_or_before_the_end() -> None:
    stream = Stream()
    for now, event in ((1.0, good()[1]), (2.0, good()[2]), (5.0, good()[3])):
        stream.take(encode_one(event), now)
    assert stream.longest_pause_s(since=1.5) == 3.0
    assert stream.longest_pause_s(since=2.5) == 2.5, "a pause that had begun before"
    stream.take(encode(good()[4:]), 9.0)
    stream.close(9.5, is_orderly=True)
    assert stream.longest_pause_s(since=2.5) == 4.5


def test_tokens_are_what_logprobs_say() -> None:
    entry = {"token": "?", "bytes": [0xE6], "logprob": -0.1}
    event = chunk({"role": "assistant", "content": ""})
    event["choices"][0]["logprobs"] = {"content": [{**entry, "top_logprobs": [entry]}]}
    stream = Stream()
    stream.take(b"data: " + json.dumps(event).encode() + b"\n\n", 1.0)
    (token,) = stream.choices[0].tokens
    assert (token.raw, token.logprob, token.top) == (b"\xe6", -0.1, {b"\xe6": -0.1})
