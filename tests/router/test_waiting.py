from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenplace.generation import Accepted, Alive, Event, Phase, Tokens
from tokenplace.router.waiting import Waiting

ALICE = "12D3KooWAlice"


def accepted(eta_ms: int, position: int, donor: str = ALICE) -> Accepted:
    return Accepted(bytes(32), 7, 0, 4096, 10, "tp/1", eta_ms, position, donor=donor)


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([], "looking for a donor"),
        ([accepted(8000, 3)], f"waiting: position 3 at {ALICE}, first token in about 8 s"),
        (
            [accepted(8000, 3, donor="")],
            "waiting: position 3 at this peer, first token in about 8 s",
        ),
        ([accepted(0, 0)], f"waiting: next at {ALICE}"),
        (
            [accepted(9000, 3), Alive(Phase.QUEUED, 0.0, 1, 400)],
            f"waiting: position 1 at {ALICE}, first token in about 1 s",
        ),
        (
            [accepted(9000, 3), Alive(Phase.REQUEUED, 0.0, 0, 150_000)],
            f"waiting again: next at {ALICE}, first token in about 2 min",
        ),
        (
            [accepted(9000, 3), Alive(Phase.QUEUED, 0.0, 0, (1 << 32) - 1)],
            f"waiting: next at {ALICE}, first token in about an hour or more",
        ),
        ([accepted(0, 0), Alive(Phase.LOADING, 0.0, 0)], "loading the model"),
        ([accepted(0, 0), Alive(Phase.PREFILL, 0.0, 0, 2400)], "reading the prompt, about 2 s"),
        ([accepted(0, 0), Alive(Phase.PREFILL, 0.4, 0)], "reading the prompt, 40 %"),
        ([accepted(0, 0), Tokens(0, 0, (1,), (b"x",))], "writing the answer"),
        (
            [accepted(0, 0), Tokens(0, 0, (1,), (b"x",)), accepted(3000, 0, "12D3KooWBob")],
            "waiting: next at 12D3KooWBob, first token in about 3 s",
        ),
    ],
    ids=str,
)
def test_where_it_stands_in_words(events: list[Event], text: str) -> None:
    waiting = Waiting()
    for event in events:
        waiting = waiting.after(event)
    assert waiting.text == text


def test_what_was_said_gets_old() -> None:
    waiting = Waiting().after(accepted(8000, 3))
    assert waiting.later(3.0).eta_s == 5.0
    assert waiting.later(30.0).eta_s == 0.0


@given(
    st.sampled_from(Phase), st.floats(0, 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)
)
def test_whatever_a_donor_says_it_stays_one_line_of_ours(
    phase: Phase, progress: float, position: int, eta_ms: int
) -> None:
    waiting = Waiting().after(accepted(0, 0)).after(Alive(phase, progress, position, eta_ms))
    assert waiting.text.isascii()
    assert waiting.text.isprintable()
    assert len(waiting.text) < 120
