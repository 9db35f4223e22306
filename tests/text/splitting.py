"""Answers cut into pieces, and what comes of them. Start at `read`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

from hypothesis import strategies as st

from tokenplace.text.choice import Choice
from tokenplace.text.deltas import CallArguments, CallBegin, Delta, Merged, merge

CUTS = st.one_of(st.lists(st.integers(0, 200), max_size=30), st.just(range(2000)))


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[a:b] for a, b in pairwise(places)]


def read(
    answer: str | bytes,
    cuts: Iterable[int] = (),
    *,
    stop: Sequence[str] = (),
    tools: Collection[str] = (),
    begun: str = "",
) -> Merged:
    """What a chat's answer says that comes in these pieces. Its deltas are checked on the way."""
    choice = Choice(stop, tools=tools)
    choice.begin(begun)
    data = answer.encode() if isinstance(answer, str) else answer
    deltas = [delta for piece in split(data, cuts) for delta in choice.feed(piece)]
    deltas += choice.finish()
    assert choice.finish() == []
    check(deltas)
    assert choice.n_calls == sum(isinstance(delta, CallBegin) for delta in deltas)
    return merge(deltas)


def check(deltas: Iterable[Delta]) -> None:
    """Are these deltas as their docstrings say?"""
    index = -1
    for delta in deltas:
        match delta:
            case CallBegin():
                index += 1
                assert delta.index == index
                assert delta.name
            case CallArguments():
                assert delta.index == index
                assert delta.text
            case _:
                assert delta.text
