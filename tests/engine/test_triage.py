"""Who is found guilty of a worker's death, and what that costs the others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenplace.engine.triage import Triage

ALICE, BOB, CAROL, DAVE = range(4)
ALL = frozenset({ALICE, BOB, CAROL, DAVE})


def drain(triage: Triage) -> list[int]:
    """Everybody who goes to the worker now."""
    taken = []
    while turn := triage.take():
        taken += turn
    return taken


def test_whoever_aborts_a_worker_alone_is_guilty() -> None:
    triage = Triage()
    assert triage.crash(sorted(ALL), frozenset({BOB}), is_own_fault=True) == BOB
    assert drain(triage) == [ALICE, CAROL, DAVE]
    assert triage.is_over


def test_whoever_was_alone_when_somebody_killed_the_worker_is_only_suspected() -> None:
    triage = Triage()
    assert triage.crash([ALICE, BOB], frozenset({ALICE}), is_own_fault=False) is None
    assert drain(triage) == [ALICE]
    assert not triage.is_over
    triage.leave(ALICE)
    assert drain(triage) == [BOB]
    assert triage.is_over


def test_suspects_are_tried_one_by_one_the_newest_first_and_the_others_wait() -> None:
    triage = Triage()
    assert triage.crash(sorted(ALL), frozenset({ALICE, CAROL}), is_own_fault=True) is None
    tried = []
    for _ in range(2):
        tried += drain(triage)
        assert not triage.is_over
        triage.leave(tried[-1])
    assert tried == [CAROL, ALICE]
    assert drain(triage) == [BOB, DAVE]
    assert triage.is_over


def test_once_one_is_guilty_all_others_are_believed() -> None:
    triage = Triage()
    triage.crash(sorted(ALL), ALL, is_own_fault=True)
    assert drain(triage) == [DAVE]
    triage.leave(DAVE)
    assert drain(triage) == [CAROL]
    # Beside those who have passed.
    assert triage.crash(sorted(ALL), frozenset({CAROL, DAVE}), is_own_fault=True) == CAROL
    assert drain(triage) == [ALICE, BOB, DAVE]
    assert triage.is_over


def test_a_death_between_steps_is_nobodys_and_suspects_stay_suspected() -> None:
    triage = Triage()
    triage.crash([ALICE, BOB], frozenset({ALICE, BOB}), is_own_fault=True)
    assert drain(triage) == [BOB]
    assert triage.crash([ALICE, BOB], frozenset(), is_own_fault=False) is None
    assert drain(triage) == [ALICE]
    triage.leave(ALICE)
    assert drain(triage) == [BOB]


def test_one_that_left_a_moment_ago_may_have_done_it() -> None:
    """So the one beside it is only suspected."""
    triage = Triage()
    assert triage.crash([ALICE], frozenset({ALICE, BOB}), is_own_fault=True) is None


def test_whoever_leaves_is_waited_for_no_more() -> None:
    triage = Triage()
    triage.crash(sorted(ALL), frozenset({ALICE, BOB, CAROL}), is_own_fault=True)
    assert drain(triage) == [CAROL]
    for gone in (BOB, DAVE, CAROL):
        triage.leave(gone)
    assert drain(triage) == [ALICE]
    triage.leave(ALICE)
    assert drain(triage) == []
    assert triage.is_over


@given(st.data())
def test_each_that_kills_costs_two_workers_at_most_and_no_innocent(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    evil = data.draw(st.frozensets(st.integers(0, n - 1)))
    triage = Triage()
    in_flight, in_worker, found, n_deaths = [*range(n)], {*range(n)}, set[int](), 0
    while True:
        turn = drain(triage)
        assert in_worker.isdisjoint(turn), "nobody is asked twice"
        in_worker |= {*turn}
        tried = triage.on_trial
        killers = [tried] if tried in evil else [] if tried is not None else [*in_worker & evil]
        if killers:
            killer = data.draw(st.sampled_from(killers))
            beside = data.draw(st.frozensets(st.sampled_from(sorted(in_worker))))
            guilty = triage.crash(in_flight, beside | {killer}, is_own_fault=True)
            n_deaths += 1
            in_worker.clear()
            if guilty is not None:
                assert guilty in evil
                found.add(guilty)
                in_flight.remove(guilty)
        elif tried is not None:
            triage.leave(tried)
        else:
            break
    assert triage.is_over
    assert in_worker == {*in_flight}, "everybody else goes on"
    assert found == evil
    assert n_deaths <= 2 * len(evil)
