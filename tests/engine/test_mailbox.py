"""Answers that come in parts: in order, whole, and each part once, whatever workers it takes."""

from __future__ import annotations

import itertools

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tokenplace.engine.frames import BadFrame
from tokenplace.engine.mailbox import Answer, Request
from tokenplace.engine.messages import Embed, Embedded, Score, Scored

TEXTS = tuple("abcdef")


def answer_to(asked: Request) -> Answer:
    return Answer(asked, b"", now=0.0)


def part(start: int, end: int) -> Embedded:
    vectors = tuple(text.encode() for text in TEXTS[start:end])
    return Embedded(0, start, vectors, (1,) * len(vectors), end == len(TEXTS))


CUTS = st.sets(st.integers(1, len(TEXTS) - 1)).map(sorted)


def parts(cuts: list[int]) -> list[Embedded]:
    places = [0, *cuts, len(TEXTS)]
    return [part(start, end) for start, end in itertools.pairwise(places)]


async def all_vectors(answer: Answer) -> list[bytes]:
    vectors: list[bytes] = []
    while True:
        mail = await answer.receive()
        assert isinstance(mail, Embedded)
        assert mail.index == len(vectors)
        assert len(mail.n_tokens) == len(mail.vectors)
        vectors += mail.vectors
        if mail.is_last:
            return vectors


@given(CUTS, CUTS, st.integers(0, len(TEXTS)))
def test_every_part_is_delivered_once(
    first_cuts: list[int], again_cuts: list[int], n_before: int
) -> None:
    """The first worker dies after some parts; the next starts over, and cuts elsewhere."""
    answer = answer_to(Embed(0, "", TEXTS, None))
    for message in parts(first_cuts)[:-1][:n_before]:
        assert not answer.take(message, 0.0)
    answer.requeue(0.0)
    assert answer.again(0.0) == answer.asked
    assert [answer.take(message, 0.0) for message in parts(again_cuts)][-1]
    assert trio.run(all_vectors, answer) == [text.encode() for text in TEXTS]


def test_a_gap_is_noticed() -> None:
    answer = answer_to(Embed(0, "", TEXTS, None))
    answer.take(part(0, 2), 0.0)
    with pytest.raises(BadFrame):
        answer.take(part(3, 6), 0.0)


def test_an_end_that_comes_too_early_is_noticed() -> None:
    with pytest.raises(BadFrame):
        answer_to(Embed(0, "", (*TEXTS, "one more"), None)).take(part(0, 6), 0.0)
    score = Score(0, "", (), (1, 2), b"", (), b"", 0)
    with pytest.raises(BadFrame):
        answer_to(score).take(Scored(0, 0, ((0.0, 0.0, 0, 0.0),), (), 5, True), 0.0)
