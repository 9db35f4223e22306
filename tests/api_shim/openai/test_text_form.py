"""Objects of raw completions."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion

from tests.api_shim.serving import TINY_MODEL
from tokenplace.api_shim.form import Part, WholeChoice
from tokenplace.api_shim.logprobs import TokenLogprob
from tokenplace.api_shim.openai.text_form import TextForm
from tokenplace.generation import TopToken, Usage
from tokenplace.text.deltas import Content

USAGE = Usage(5, 2, 3)


def form_of(n_choices: int = 1, **fields: object) -> TextForm:
    return TextForm("cmpl-1", 1, TINY_MODEL, n_choices, **fields)  # type: ignore[arg-type]


def token(piece: bytes, *top: TopToken) -> TokenLogprob:
    return TokenLogprob(piece, -0.5, top)


def test_every_object_is_what_the_sdk_reads() -> None:
    form = form_of(2, includes_usage=True)
    whole = form.whole([WholeChoice([Content("Hi")], (), "stop")] * 2, USAGE)
    Completion.model_validate(whole, strict=True)
    assert [choice["text"] for choice in whole["choices"]] == ["Hi", "Hi"]
    assert form.begin() == []
    (chunk,) = form.deltas(Part(1, [Content("Hi")], ()))
    assert chunk["object"] == "text_completion"
    assert chunk["choices"] == [{"text": "Hi", "index": 1, "logprobs": None, "finish_reason": None}]
    *ends, usage = form.end(["stop", "length"], USAGE)
    reasons = [end["choices"][0]["finish_reason"] for end in ends]
    assert reasons == ["stop", "length"]
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 8)


def test_an_echo_stands_before_each_choice() -> None:
    form = form_of(2, echoes=("One", "Two"))
    whole = form.whole([WholeChoice([Content("!")], (), "stop")] * 2, USAGE)
    assert [choice["text"] for choice in whole["choices"]] == ["One!", "Two!"]
    begin = [chunk["choices"][0] for chunk in form.begin()]
    assert [(choice["index"], choice["text"]) for choice in begin] == [(0, "One"), (1, "Two")]


def test_logprobs_have_openais_old_form() -> None:
    top = TopToken(1, b"Gr", -0.1), TopToken(2, b"\xc3", float("-inf"))
    tokens = [token(b"Gr", *top), token(b"\xc3", *top), token(b"\xbc", *top), token(b"n", *top)]
    whole = form_of(top_logprobs=2).whole([WholeChoice([Content("Grün")], tokens, "stop")], USAGE)
    Completion.model_validate(whole, strict=True)
    logprobs = whole["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["Gr", "bytes:\\xc3", "bytes:\\xbc", "n"]
    assert logprobs["token_logprobs"] == [-0.5] * 4
    assert logprobs["text_offset"] == [0, 2, 2, 3]
    # The token itself is among the most likely, or added to them.
    assert logprobs["top_logprobs"][0] == {"Gr": -0.5, "bytes:\\xc3": -9999.0}
    assert logprobs["top_logprobs"][3] == {"Gr": -0.1, "bytes:\\xc3": -9999.0, "n": -0.5}
    json.dumps(whole, allow_nan=False)


@given(st.lists(st.binary(max_size=3), max_size=8), st.integers(1, 3))
def test_offsets_go_on_from_chunk_to_chunk(pieces: list[bytes], per_chunk: int) -> None:
    tokens = [token(piece) for piece in pieces]
    form = form_of(top_logprobs=0)
    whole = form.whole([WholeChoice((), tokens, "stop")], USAGE)["choices"][0]["logprobs"]
    assert whole["top_logprobs"] is None
    streaming = form_of(top_logprobs=0)
    offsets = []
    for begin in range(0, len(tokens), per_chunk):
        (chunk,) = streaming.deltas(Part(0, (), tokens[begin : begin + per_chunk]))
        offsets += chunk["choices"][0]["logprobs"]["text_offset"]
    assert offsets == whole["text_offset"]


def test_choices_count_their_own_offsets() -> None:
    form = form_of(2, top_logprobs=0)
    for choice in (0, 1):
        (chunk,) = form.deltas(Part(choice, [Content("Hi")], [token(b"H"), token(b"i")]))
        assert chunk["choices"][0]["logprobs"]["text_offset"] == [0, 1]
