"""What heartbeats show of a wait."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peer.exchanges import ACCEPTED
from tokenplace import defaults
from tokenplace.generation import Alive, Phase
from tokenplace.peer.movement import Movement

STILL_S, QUEUED_S = defaults.STILL_TIMEOUT_S, defaults.QUEUE_STILL_TIMEOUT_S
QUEUED = Alive(Phase.QUEUED, 0.0, 3, 9000)
PREFILL = Alive(Phase.PREFILL, 0.2, 0, 900)


def started() -> Movement:
    movement = Movement(0.0)
    movement.start(replace(ACCEPTED, position=3, eta_ms=9000))
    return movement


@pytest.mark.parametrize(
    "alive",
    [
        replace(QUEUED, position=2),
        replace(QUEUED, eta_ms=8999),
        replace(QUEUED, progress=0.1),
    ],
    ids=["position", "eta", "progress"],
)
def test_what_moves(alive: Alive) -> None:
    movement = started()
    movement.note(QUEUED, 5.0)
    assert movement.due_at == QUEUED_S
    movement.note(alive, 6.0)
    assert movement.due_at == 6 + QUEUED_S
    movement.note(alive, 8.0)
    movement.note(QUEUED, 9.0)
    movement.note(alive, 10.0)
    assert movement.due_at == 6 + QUEUED_S, "back and forth is no movement"


def test_a_later_phase_moves_and_an_earlier_one_does_not() -> None:
    movement = started()
    movement.note(PREFILL, 5.0)
    assert movement.due_at == 5 + STILL_S
    movement.note(QUEUED, 6.0)
    movement.note(PREFILL, 7.0)
    assert movement.due_at == 5 + STILL_S
    movement.note(replace(PREFILL, progress=0.3), 8.0)
    movement.note(Alive(Phase.DECODE, 0.0, 0), 9.0)
    assert movement.due_at == 9 + STILL_S


def test_an_unknown_eta_says_nothing() -> None:
    movement = Movement(0.0)
    movement.start(replace(ACCEPTED, eta_ms=0))
    movement.note(replace(QUEUED, position=0, eta_ms=0), 5.0)
    assert movement.due_at == QUEUED_S
    movement.note(replace(QUEUED, position=0, eta_ms=5000), 6.0)
    assert movement.due_at == 6 + QUEUED_S
    movement.note(replace(QUEUED, position=0, eta_ms=0), 7.0)
    assert movement.due_at == 6 + QUEUED_S


def test_requeued_begins_anew_and_moves_only_with_renew() -> None:
    movement = started()
    movement.note(PREFILL, 5.0)
    movement.note(Alive(Phase.REQUEUED, 0.0, 3), 9.0)
    assert movement.due_at == 5 + QUEUED_S
    movement.renew(9.0)
    assert movement.due_at == 9 + QUEUED_S
    movement.note(PREFILL, 12.0)
    assert movement.due_at == 12 + STILL_S


heartbeats = st.builds(
    Alive,
    st.sampled_from([Phase.QUEUED, Phase.LOADING, Phase.PREFILL, Phase.DECODE]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.integers(0, 3),
    st.sampled_from([0, 1000, 9000]),
)


@given(st.lists(heartbeats, min_size=1), st.integers(1, 30))
def test_nothing_that_repeats_keeps_a_wait_alive(said: list[Alive], n_times: int) -> None:
    movement = started()
    now = 0.0
    for alive in said:
        movement.note(alive, now := now + 2)
    due_at = movement.due_at
    for alive in said * n_times:
        movement.note(alive, now := now + 2)
    assert movement.due_at == due_at
