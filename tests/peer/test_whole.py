"""Answers that come whole: cut, put together, and never believed beyond what was asked."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.answerers import vector_of
from tests.peer.exchange_lab import TINY_MODEL
from tokenplace import defaults
from tokenplace.errors import RemoteProtocolError
from tokenplace.generation import IdsInput, SamplingParams, TextInput, Tokens
from tokenplace.operations import (
    CountRequest,
    Embeddings,
    EmbedRequest,
    Question,
    Replay,
    Reply,
    ScoreRequest,
    Scores,
    TokenScore,
)
from tokenplace.peer.frames import decode_frames, encode_frame
from tokenplace.peer.whole import Answered, Part, Taken, WholeContents, frames_of

EMBED = EmbedRequest("", ("one", "two", (3, 4)), artifact=TINY_MODEL)
COUNT = CountRequest("", TextInput("x"), "2026-03-01", TINY_MODEL)
SCORE = ScoreRequest("", IdsInput((1,)), (5, 6, 7), bytes(16), "2026-03-01", artifact=TINY_MODEL)
REPLAY = Replay(SamplingParams(), bytes(8))
U32 = st.integers(0, (1 << 32) - 1)
TOKEN_SCORES = st.builds(
    TokenScore,
    st.floats(max_value=0, width=32, allow_infinity=False),
    st.floats(min_value=0, width=32, allow_infinity=False),
    U32,
    st.floats(0, 1, width=32),
)


def received(question: Question, reply: Reply) -> Reply | None:
    """As it is at the other end of the wire."""
    contents = WholeContents(question)
    for frame in (Taken(), *frames_of(reply)):
        (arrived,) = decode_frames(encode_frame(frame))
        contents.take(arrived)
    return contents.reply


def vectors(n: int, n_numbers: int) -> Embeddings:
    return Embeddings(tuple(vector_of(str(i), n_numbers) for i in range(n)), tuple(range(n)))


@given(st.integers(1, 40), st.integers(1, 700), st.integers(1, 5000), st.booleans())
def test_vectors_arrive_as_they_were(n: int, n_numbers: int, size: int, is_asked: bool) -> None:
    question = EmbedRequest("", ("x",) * n, n_numbers if is_asked else None)
    reply = vectors(n, n_numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "MAX_PART_BYTES", size)
        *parts, _ = frames_of(reply)
        assert all(isinstance(part, Part) and 1 <= len(part.data) <= size for part in parts)
        assert received(question, reply) == reply


@given(st.lists(TOKEN_SCORES, min_size=1, max_size=9), U32, st.data())
def test_scores_arrive_as_they_were(
    tokens: list[TokenScore], n_prompt: int, data: st.DataObject
) -> None:
    has_replay = data.draw(st.booleans())
    n = len(tokens)
    drawn = data.draw(st.lists(U32, min_size=n, max_size=n)) if has_replay else []
    question = replace(SCORE, ids=(0,) * n, replay=REPLAY if has_replay else None)
    reply = Scores(tuple(tokens), tuple(drawn), n_prompt)
    assert received(question, reply) == reply


def test_what_float32_has_no_number_for_is_its_furthest() -> None:
    score = TokenScore(-math.inf, math.inf, 7, 1.0)
    reply = received(replace(SCORE, ids=(5,)), Scores((score,), (), 1))
    assert isinstance(reply, Scores)
    (arrived,) = reply.tokens
    assert arrived.logprob == -arrived.gap == -(2 - 2**-23) * 2.0**127


@given(U32)
def test_a_count_arrives_as_it_was(n: int) -> None:
    assert received(COUNT, n) == n


@pytest.mark.parametrize(
    "frames",
    [
        (Part(1, b"x"),),
        (Part(0, b""),),
        (Part(0, b"abcd"), Part(0, b"abcd")),
        (Part(0, b"abcd"), Part(5, b"abcd")),
        (Part(0, b"abcd"), Part(3, b"abcd")),
        (Tokens(0, 0, (1,), (b"x",)),),
    ],
)
def test_a_gap_or_an_overlap_is_no_answer(frames: tuple[Part | Tokens, ...]) -> None:
    contents = WholeContents(EMBED)
    *right, wrong = frames
    for frame in right:
        contents.take(frame)
    with pytest.raises(RemoteProtocolError):
        contents.take(wrong)


@pytest.mark.parametrize(
    ("question", "most"),
    [
        (replace(EMBED, dimensions=5), 3 * 5 * 4),
        (replace(EMBED, inputs=("x",)), defaults.MAX_EMBED_DIMENSIONS * 4),
        (replace(EMBED, inputs=("x",) * 2048), defaults.MAX_VECTORS_BYTES),
        (COUNT, 0),
        (SCORE, 3 * 16),
        (replace(SCORE, replay=REPLAY), 3 * 20),
    ],
)
def test_nobody_sends_more_than_was_asked_for(question: Question, most: int) -> None:
    contents = WholeContents(question)
    if most:
        contents.take(Part(0, bytes(most)))
    with pytest.raises(RemoteProtocolError):
        contents.take(Part(most, b"x"))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 0.5, 3e38])
def test_every_vector_is_looked_at(number: float) -> None:
    """Bytes that are no vector of length 1, wherever they stand."""
    for place in range(3):
        numbers = [1.0] * 3
        numbers[place] = number
        contents = WholeContents(EMBED)
        contents.take(Part(0, struct.pack("<3f", *numbers)))
        with pytest.raises(RemoteProtocolError):
            contents.take(Answered((1, 1, 1)))


def test_the_largest_frames_fit_a_chunk() -> None:
    most = (1 << 32) - 1
    part = encode_frame(Part(most, bytes(defaults.MAX_PART_BYTES)))
    end = encode_frame(Answered((most,) * defaults.MAX_EMBED_INPUTS))
    for frame in (part, end):
        assert len(frame) + len(encode_frame(Taken())) + 2 <= defaults.MAX_CHUNK_BYTES
