"""Breakers, as a state machine over any answers."""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokenplace import defaults
from tokenplace.router.breaker import FAULTS_IN_A_ROW, REMEMBERED, Breaker, State

LONGEST_REST_S = defaults.BREAKER_MAX_REST_S * 1.5


def proven() -> Breaker:
    breaker = Breaker()
    breaker.note_good(0)
    return breaker


def opened(at: float = 0.0, dice: Random | None = None) -> Breaker:
    breaker = proven()
    for _ in range(FAULTS_IN_A_ROW):
        breaker.note_fault(at, at, dice or Random(1))
    return breaker


def rest_of(breaker: Breaker, now: float) -> float:
    return breaker.rests_until - now


def test_one_fault_opens_it_of_somebody_who_never_answered_well() -> None:
    breaker = Breaker()
    breaker.note_fault(0, 0, Random(1))
    assert breaker.state(0) is State.OPEN


def test_three_faults_in_a_row_open_it_and_two_do_not() -> None:
    breaker = proven()
    for fault in range(FAULTS_IN_A_ROW):
        assert breaker.state(0) is State.CLOSED, f"after {fault}"
        breaker.note_fault(0, 0, Random(1))
    assert breaker.state(0) is State.OPEN


def test_more_than_half_of_the_last_eight_open_it_though_some_are_good() -> None:
    breaker = proven()
    faults = 0
    while breaker.state(0) is State.CLOSED:
        breaker.note_good(0)
        breaker.note_fault(0, 0, Random(1))
        faults += 1
        if breaker.state(0) is State.CLOSED:
            breaker.note_fault(0, 0, Random(1))
            faults += 1
        assert faults <= REMEMBERED
    assert faults == 5


def test_every_second_answer_bad_leaves_it_closed_and_says_so() -> None:
    breaker = Breaker()
    for _ in range(100):
        breaker.note_good(0)
        breaker.note_fault(0, 0, Random(1))
    assert breaker.state(0) is State.CLOSED
    assert breaker.faults == 0.5


def test_each_trial_that_fails_doubles_the_rest_up_to_the_longest() -> None:
    breaker, now, rests = opened(), 0.0, []
    for _ in range(12):
        rests.append(rest_of(breaker, now))
        now = breaker.rests_until
        assert breaker.state(now) is State.HALF_OPEN
        breaker.begin_trial()
        breaker.end_trial()
        breaker.note_fault(now, now, Random(1))
    for number, rest in enumerate(rests):
        due = min(defaults.BREAKER_REST_S * 2**number, defaults.BREAKER_MAX_REST_S)
        assert due / 2 <= rest <= due * 1.5


def test_rests_are_not_all_alike() -> None:
    assert len({rest_of(opened(dice=Random(seed)), 0) for seed in range(20)}) == 20


def test_what_was_asked_before_it_opened_neither_closes_it_nor_makes_it_rest_longer() -> None:
    breaker = opened(at=10.0)
    until = breaker.rests_until
    breaker.note_good(asked_at=9.0)
    breaker.note_fault(9.0, until + 1, Random(1))
    assert breaker.state(10.0) is State.OPEN
    assert breaker.rests_until == until


def test_who_closes_it_once_rests_longer_if_it_opens_again_at_once() -> None:
    breaker = opened()
    now = breaker.rests_until
    breaker.note_good(now)
    assert breaker.state(now) is State.CLOSED
    for _ in range(FAULTS_IN_A_ROW):
        breaker.note_fault(now, now, Random(1))
    assert rest_of(breaker, now) >= defaults.BREAKER_REST_S


def test_who_was_well_for_long_starts_anew() -> None:
    breaker = opened()
    now = breaker.rests_until
    for _ in range(REMEMBERED):
        breaker.note_good(now)
    for _ in range(FAULTS_IN_A_ROW):
        breaker.note_fault(now, now, Random(1))
    assert rest_of(breaker, now) <= defaults.BREAKER_REST_S * 1.5


class BreakerMachine(RuleBasedStateMachine):
    """Requests that begin when they may, end in any order, and say anything."""

    @initialize(seed=st.integers())
    def start(self, seed: int) -> None:
        self.breaker = Breaker()
        self.dice = Random(seed)
        self.now = 0.0
        self.asked: list[tuple[float, bool]] = []

    @rule(seconds=st.floats(0, 1000))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        state = self.breaker.state(self.now)
        if state is State.OPEN or (state is State.HALF_OPEN and self.breaker.is_tried):
            return
        is_trial = state is State.HALF_OPEN
        if is_trial:
            self.breaker.begin_trial()
        self.asked.append((self.now, is_trial))

    @precondition(lambda self: self.asked)
    @rule(what=st.sampled_from(["good", "fault", "nothing"]), data=st.data())
    def end(self, what: str, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(self.asked))
        self.asked.remove(asked)
        at, is_trial = asked
        if is_trial:
            self.breaker.end_trial()
        if what == "good":
            self.breaker.note_good(at)
            assert not is_trial or self.breaker.state(self.now) is State.CLOSED
        elif what == "fault":
            self.breaker.note_fault(at, self.now, self.dice)
            assert not is_trial or self.breaker.state(self.now) is State.OPEN

    @invariant()
    def at_most_one_is_tried_and_no_rest_is_for_ever(self) -> None:
        trials = [each for each in self.asked if each[1]]
        assert len(trials) == self.breaker.is_tried
        assert self.breaker.rests_until - self.now <= LONGEST_REST_S
        assert 0 <= self.breaker.faults <= 0.5


BreakerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBreaker = BreakerMachine.TestCase
