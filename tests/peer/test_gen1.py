from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peer.exchange_lab import make_request
from tests.peer.mutations import damaged
from tokenplace import defaults
from tokenplace.errors import InvalidRequest, RequestTooBig, TokenplaceError
from tokenplace.generation import (
    ChatInput,
    ChatMessage,
    GenerateRequest,
    SamplingParams,
    TextInput,
)
from tokenplace.peer.gen1 import Body, encode_body, parse_body

PATH = Path(__file__).resolve().parent.parent / "vectors" / "gen1.json"
VECTORS = json.loads(PATH.read_text())["bodies"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def meaning(body: Body) -> dict[str, Any]:
    if isinstance(body.input, TextInput):
        asked: dict[str, Any] = {"prompt": body.input.prompt}
    else:
        asked = {"messages": [[m.role, m.content] for m in body.input.messages]}
    sampling = body.sampling
    return asked | {
        "max_tokens": body.max_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "stop": list(body.stop),
        "ignore_eog": body.ignore_eog,
    }


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    body = bytes.fromhex(vector["body_hex"]) if "body_hex" in vector else vector["body"].encode()
    if vector["expect"] == "success":
        assert meaning(parse_body(body)) == vector["means"]
        return
    with pytest.raises(TokenplaceError) as refusal:
        parse_body(body)
    assert refusal.value.code == vector["expect"]
    assert refusal.value.param == vector["param"]


@st.composite
def requests(draw: st.DrawFn) -> GenerateRequest:
    roles = st.sampled_from(["system", "user", "assistant"])
    messages = st.lists(st.builds(ChatMessage, roles, TEXT), min_size=1, max_size=4)
    chat = messages.map(lambda some: ChatInput(tuple(some)))
    stop = TEXT.filter(lambda text: 1 <= len(text.encode()) <= defaults.MAX_STOP_STRING_BYTES)
    return make_request(
        input=draw(chat | st.builds(TextInput, TEXT.filter(bool))),
        sampling=SamplingParams(
            draw(st.floats(0, 2)),
            draw(st.integers(0, defaults.MAX_TOP_K)),
            draw(st.floats(0, 1, exclude_min=True)),
            draw(st.floats(0, 1)),
        ),
        max_tokens=draw(st.none() | st.integers(1, defaults.MAX_NEW_TOKENS)),
        stop=tuple(draw(st.lists(stop, max_size=defaults.MAX_STOP_STRINGS))),
        ignore_eog=draw(st.booleans()),
    )


@given(requests())
def test_what_is_encoded_means_the_same(request: GenerateRequest) -> None:
    body = parse_body(encode_body(request))
    assert body == Body(
        request.input, request.sampling, request.max_tokens, request.stop, request.ignore_eog
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
FIELDS = st.sampled_from(
    ["messages", "prompt", "max_tokens", "temperature", "top_k", "top_p", "min_p", "stop"]
)


RIGHT = encode_body(make_request("one two", stop=("x",), max_tokens=5))


@given(st.dictionaries(FIELDS, JSON).map(json.dumps).map(str.encode) | st.binary() | damaged(RIGHT))
def test_nothing_but_declared_errors(data: bytes) -> None:
    try:
        body = parse_body(data)
    except InvalidRequest as error:
        error.user_text.encode()
    else:
        assert body.max_tokens is None or 1 <= body.max_tokens <= defaults.MAX_NEW_TOKENS


def test_limits_of_counts_and_bytes() -> None:
    message = ChatMessage("user", "x")
    most = make_request(input=ChatInput((message,) * defaults.MAX_MESSAGES))
    assert parse_body(encode_body(most)).input == most.input
    more = make_request(input=ChatInput((message,) * (defaults.MAX_MESSAGES + 1)))
    with pytest.raises(InvalidRequest):
        parse_body(encode_body(more))
    longest = "ü" * (defaults.MAX_STOP_STRING_BYTES // 2)
    assert parse_body(encode_body(make_request(stop=(longest,)))).stop == (longest,)
    with pytest.raises(InvalidRequest):
        parse_body(encode_body(make_request(stop=(longest + "x",))))


def test_the_largest_body() -> None:
    room = defaults.MAX_BODY_BYTES - len(encode_body(make_request("x"))) + 1
    body = encode_body(make_request("x" * room))
    assert len(body) == defaults.MAX_BODY_BYTES
    assert parse_body(body).input == TextInput("x" * room)
    with pytest.raises(RequestTooBig):
        encode_body(make_request("x" * (room + 1)))
    with pytest.raises(RequestTooBig):
        parse_body(body + b" ")


@pytest.mark.parametrize(
    "request_",
    [
        make_request("\ud800"),
        make_request(sampling=SamplingParams(temperature=math.nan)),
        make_request(sampling=SamplingParams(top_p=math.inf)),
    ],
)
def test_what_json_cannot_hold_is_not_sent(request_: GenerateRequest) -> None:
    with pytest.raises(InvalidRequest):
        encode_body(request_)


@pytest.mark.parametrize("body", [b"[" * 3_000_000, b'{"a":' * 500_000, b'"' + b"[" * 100])
def test_depth_is_refused_before_it_is_parsed(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_body(body)


def test_a_number_of_thousands_of_digits_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        parse_body(b'{"prompt":"x","new":' + b"9" * 10_000 + b"}")


def test_errors_never_quote_what_they_read() -> None:
    canary = "canary-7f3a"
    for body in (
        f'{{"prompt":"{canary}","{canary}":NaN}}',
        f'{{"prompt":"{canary}","stop":["{canary}","{canary * 40}"]}}',
        f'{{"{canary}":1,"{canary}":2}}',
        f'{{"prompt":"{canary}',
        f'{{"messages":[{{"role":"{canary}","content":"x"}}]}}',
    ):
        with pytest.raises(InvalidRequest) as refusal:
            parse_body(body.encode())
        assert canary not in refusal.value.user_text
        assert refusal.value.__cause__ is None
        assert refusal.value.__suppress_context__ or refusal.value.__context__ is None
