"""Log-probabilities appear with their tokens' text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenplace.api_shim.logprobs import LogprobQueue
from tokenplace.generation import Logprob
from tokenplace.text.choice import Choice
from tokenplace.text.deltas import merge


def feed(queue: LogprobQueue, *pieces: bytes) -> list[bytes]:
    queue.feed(pieces, [Logprob(-1.0)] * len(pieces))
    return [token.piece for token in queue.take()]


def test_tokens_wait_while_their_text_may_become_a_stop_string() -> None:
    queue = LogprobQueue(["END"])
    assert feed(queue, b"one ", b"E") == [b"one "]
    assert feed(queue, b"N") == []
    assert feed(queue, b"ough") == [b"E", b"N", b"ough"]


def test_tokens_behind_a_stop_string_were_never_said() -> None:
    queue = LogprobQueue(["END"])
    assert feed(queue, b"one", b" E") == [b"one"]
    # The token before the cut shows, though only its first character was said.
    assert feed(queue, b"ND", b" two") == [b" E"]
    assert feed(queue, b"three") == []  # a donor that goes on all the same
    assert queue.finish() == ()


def test_the_end_releases_what_waited() -> None:
    queue = LogprobQueue(["END"])
    assert feed(queue, b"EN") == []
    assert [token.piece for token in queue.finish()] == [b"EN"]


@given(
    st.lists(st.text("ENDé", max_size=3).map(str.encode), max_size=12),
    st.lists(st.text("ENDé", min_size=1, max_size=3), max_size=2),
    st.integers(1, 3),
)
def test_the_tokens_shown_are_those_that_the_text_came_from(
    pieces: list[bytes], stop: list[str], per_event: int
) -> None:
    queue, choice = LogprobQueue(stop), Choice(stop, is_chat=False)
    shown, deltas = [], []
    for begin in range(0, len(pieces), per_event):
        if choice.stopped:
            break
        event = pieces[begin : begin + per_event]
        deltas += choice.feed(b"".join(event))
        shown += feed(queue, *event)
        if not choice.stopped:  # never ahead of the text
            text = merge(deltas).content.encode()
            assert text.startswith(b"".join(shown))
    if not choice.stopped:
        deltas += choice.finish()
        shown += [token.piece for token in queue.finish()]
    text = merge(deltas).content.encode()
    assert b"".join(shown).startswith(text)
    said = [piece for piece in pieces[: len(shown)]]
    assert shown == said
    assert not shown or len(b"".join(shown[:-1])) < max(len(text), 1) or not shown[-1]
