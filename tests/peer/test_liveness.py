"""When a connection is asked for a sign of life, and when it is given up."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenplace import defaults
from tokenplace.peer.liveness import Liveness, Step

PROMISED_S = 12.0
OUTAGE_S = 5.0
SILENCE_S = defaults.KEEPALIVE_INTERVAL_S + defaults.KEEPALIVE_TIMEOUT_S


def follow(liveness: Liveness, until: float, *, in_use: bool) -> list[tuple[float, Step]]:
    """What is done at which time if nothing comes, as somebody does who always looks in time."""
    done: list[tuple[float, Step]] = []
    while (at := liveness.due_at(in_use=in_use)) <= until:
        done.append((at, liveness.look(at, in_use=in_use)))
        if done[-1][1] is Step.GIVE_UP:
            break
    return done


@given(
    heard=st.lists(st.floats(0, 30), max_size=20).map(sorted),
    dice=st.floats(0, 1),
    in_use=st.booleans(),
)
def test_whatever_came_before_silence_ends_within_12_s_and_not_within_an_outage(
    heard: list[float], dice: float, in_use: bool
) -> None:
    liveness = Liveness(0.0, lambda: dice)
    last = 0.0
    for at in heard:
        assert Step.GIVE_UP not in [step for _, step in follow(liveness, at, in_use=in_use)] or (
            at - last >= SILENCE_S
        )
        if at - last >= SILENCE_S:
            return
        liveness.heard(at)
        last = at
    *asked, (given_up_at, step) = follow(liveness, last + 60, in_use=in_use)
    assert step is Step.GIVE_UP
    assert given_up_at - last < PROMISED_S
    assert asked, "it is asked before"
    assert given_up_at - asked[-1][0] > OUTAGE_S
    if in_use:
        assert given_up_at - asked[0][0] >= 9, "TCP may take nearly twice the outage"


@given(st.floats(0, 1), st.booleans())
def test_who_always_says_something_is_asked_nothing(dice: float, in_use: bool) -> None:
    liveness = Liveness(0.0, lambda: dice)
    for tenth in range(200):
        now = tenth / 10
        assert liveness.look(now, in_use=in_use) is Step.WAIT
        assert not liveness.heard(now), "nobody waited for it"
        liveness.said(now)


@given(st.floats(0, 1))
def test_who_only_listens_speaks_up_while_a_stream_is_open(dice: float) -> None:
    used, idle = Liveness(0.0, lambda: dice), Liveness(0.0, lambda: dice)
    spoken_at = [0.0]
    for tenth in range(200):
        now = tenth / 10
        assert idle.look(now, in_use=False) is Step.WAIT
        if used.look(now, in_use=True) is Step.SPEAK:
            spoken_at.append(now)
        for liveness in (used, idle):
            assert not liveness.heard(now), "no answer is waited for"
    pauses = [later - sooner for sooner, later in pairwise(spoken_at)]
    assert max(pauses) <= defaults.KEEPALIVE_IN_USE_S + 0.11
    assert min(pauses) > defaults.KEEPALIVE_IN_USE_S / 2
    assert len(pauses) >= 9


def test_what_is_said_hides_no_silence_of_the_other_side() -> None:
    liveness = Liveness(0.0, lambda: 0.0)
    for second in range(1, 11):
        liveness.said(float(second))
        expected = Step.ASK if second == 2 else Step.WAIT
        assert liveness.look(float(second), in_use=True) is expected
    assert liveness.look(SILENCE_S, in_use=True) is Step.GIVE_UP


def test_an_answer_begins_another_silence() -> None:
    liveness = Liveness(0.0, lambda: 0.0)
    assert liveness.look(4.0, in_use=False) is Step.ASK
    assert liveness.heard(4.1)
    assert liveness.due_at(in_use=False) == 8.1
    assert liveness.silent_s(5.1) == pytest.approx(1.0)


def test_a_connection_in_use_is_asked_sooner_and_given_up_no_earlier() -> None:
    idle, used = (follow(Liveness(0.0, lambda: 0.0), 60, in_use=used) for used in (False, True))
    assert idle == [(4.0, Step.ASK), (SILENCE_S, Step.GIVE_UP)]
    assert used == [(2.0, Step.ASK), (SILENCE_S, Step.GIVE_UP)]


def test_many_are_not_asked_in_the_same_moment() -> None:
    first = {Liveness(0.0).due_at(in_use=False) for _ in range(50)}
    assert len(first) > 40
    assert all(3.0 <= at <= 4.0 for at in first)


def test_a_process_that_stood_still_asks_once_more() -> None:
    liveness = Liveness(0.0, lambda: 0.0)
    assert liveness.look(4.0, in_use=False) is Step.ASK
    assert liveness.look(60.0, in_use=False) is Step.ASK, "an answer may lie there unread"
    assert liveness.due_at(in_use=False) == 60.0 + defaults.KEEPALIVE_TIMEOUT_S
    assert liveness.look(67.0, in_use=False) is Step.GIVE_UP


def test_a_doubted_connection_is_asked_at_once_and_has_no_more_time_for_it() -> None:
    liveness = Liveness(0.0, lambda: 0.0)
    assert liveness.look(1.0, in_use=False) is Step.WAIT
    liveness.doubt()
    assert liveness.due_at(in_use=False) <= 1.0
    assert liveness.look(1.0, in_use=False) is Step.ASK
    assert liveness.look(1.0, in_use=False) is Step.WAIT
    for at in (2.0, 5.0, 10.0):  # a network that comes and goes
        liveness.doubt()
        assert liveness.look(at, in_use=False) is Step.ASK
    assert liveness.look(SILENCE_S, in_use=False) is Step.GIVE_UP
